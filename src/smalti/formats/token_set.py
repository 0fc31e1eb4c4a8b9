"""A token data set: a folder of shards, and a manifest that says what they hold and how to tell that they are whole.

DIR/manifest.json                what is here; written last, so that a set with a manifest is complete
DIR/tokens-00000.parquet …       the shards, see `token_shards.py`
DIR/tokenizer/                   the tokenizer that made them, so that they can be decoded
DIR/progress/                    only while the set is being made: the plan, and one note for each finished shard
"""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from smalti.formats.sealed_json import open_sealed, seal
from smalti.formats.storage import Storage
from smalti.formats.token_shards import TokenRow, read_shard

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Shard",
    "TokenManifest",
    "read_manifest",
    "read_rows",
    "shard_name",
    "verify",
    "write_manifest",
]

FORMAT, VERSION = "smalti tokens", 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """What the manifest knows of one shard."""

    file: str
    """Its name in the folder."""
    rows: int
    """Rows in it."""
    images: int
    """Images that it was made from, the unreadable ones not counted."""
    sha256: str
    """Of its bytes."""


@dataclass(frozen=True)
class TokenManifest:
    """What a token data set holds."""

    fingerprint: str
    """Of the tokenizer."""
    vocab_size: int
    """Tokens lie in [0, vocab_size)."""
    grids: list[list[int]] | None
    """Shape of each scale, coarse to fine; None where images differ in size."""
    image_size: list[int] | None
    """Height and width of what was tokenized; None where images differ."""
    transform: dict[str, Any]
    """Size, crops and mirror images taken of each image."""
    source: str
    """The images, as they were named."""
    shards: list[Shard]
    """The shards, in order."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Images that could not be read, and why."""
    class_names: list[str] = field(default_factory=list)
    """Names of the labels 0, 1, 2, …; empty without labels."""
    batch_mismatch: float | None = None
    """Share of tokens that came out differently when images were encoded one by one, measured on the first batch; None
    on devices whose arithmetic cannot depend on the batch, as everything runs there in batches of one composition."""

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def images(self) -> int:
        """Images of all shards."""
        return sum(shard.images for shard in self.shards)


def shard_name(number: int) -> str:
    """File name of a shard.

    >>> shard_name(7)
    'tokens-00007.parquet'
    """
    return f"tokens-{number:05d}.parquet"


def write_manifest(storage: Storage, manifest: TokenManifest) -> None:
    """Write the manifest, which makes the set complete."""
    storage.write(MANIFEST, seal(FORMAT, VERSION, asdict(manifest)))


def read_manifest(storage: Storage) -> TokenManifest:
    """Read the manifest of a set.

    Raises:
        FileNotFoundError: there is none; the message says whether a set is being made there.
        ValueError: it is damaged, of another version, or something else.
    """
    if not storage.exists(MANIFEST):
        if storage.exists("progress"):
            raise FileNotFoundError(f"{storage}: is incomplete; run the same smalti tokenize again to finish it")
        raise FileNotFoundError(f"{storage}: holds no {MANIFEST}, so it is no token data set")
    try:
        _, content = open_sealed(storage.read(MANIFEST), FORMAT, VERSION)
        shards = [Shard(**shard) for shard in content.pop("shards")]
        return TokenManifest(**content, shards=shards)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{storage}/{MANIFEST}: is damaged: {error}") from error


def verify(storage: Storage) -> list[str]:
    """Everything that is wrong with a token data set, one line each; empty if it is whole.

    Reads every byte: shards must be there, unaltered, with the rows that the manifest counts, and indices within the
    vocabulary. A file that no manifest names is reported, too.
    """
    manifest = read_manifest(storage)
    problems = [problem for shard in manifest.shards if (problem := _problem(storage, manifest, shard))]
    known = {shard.file for shard in manifest.shards}
    strangers = [name for name in storage.names() if name.endswith(".parquet") and name not in known]
    return problems + [f"{name}: is not in the manifest" for name in strangers]


def read_rows(storage: Storage, manifest: TokenManifest, shard: Shard) -> list[TokenRow]:
    """All rows of a shard, checked against the manifest.

    Raises:
        FileNotFoundError: the shard is missing.
        ValueError: it is altered, or does not hold what the manifest says.
    """
    try:
        data = storage.read(shard.file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{shard.file}: is missing") from error
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise ValueError(f"{shard.file}: was altered, its SHA-256 differs")
    try:
        rows = read_shard(data)
    except ValueError as error:
        raise ValueError(f"{shard.file}: {error}") from error
    if len(rows) != shard.rows or len({row.key for row in rows}) != shard.images:
        raise ValueError(f"{shard.file}: has {len(rows)} rows, the manifest counts {shard.rows}")
    for row in rows:
        if not _fits(row, manifest):
            raise ValueError(f"{shard.file}: tokens of {row.key} do not fit the manifest")
    return rows


def _problem(storage: Storage, manifest: TokenManifest, shard: Shard) -> str | None:
    try:
        read_rows(storage, manifest, shard)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None


def _fits(row: TokenRow, manifest: TokenManifest) -> bool:
    grids = [list(grid) for grid in row.grids]
    in_range = all(
        0 <= int(edge) < manifest.vocab_size for edge in (row.indices.min(initial=0), row.indices.max(initial=0))
    )
    return in_range and manifest.grids in (None, grids)
