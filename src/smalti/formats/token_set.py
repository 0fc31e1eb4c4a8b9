"""A token data set: a folder of shards, and a manifest with their contents and checksums.

DIR/manifest.json                list of the contents; written last, so that a set with a manifest is complete
DIR/tokens-00000.parquet …       the shards, see `token_shards.py`
DIR/tokenizer/                   the tokenizer that made the tokens and can decode them
DIR/.arrays/                     the rows unpacked for training, see `token_arrays.py`; written by the first training
DIR/progress/                    only while the set is being made: the plan, and one note per finished shard
"""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from smalti.formats.sealed_json import open_sealed, seal
from smalti.formats.storage import Storage
from smalti.formats.token_shards import TokenRow, read_shard

FORMAT, VERSION = "smalti tokens", 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """Entry of one shard in the manifest."""

    file: str
    """File name in the folder."""
    rows: int
    """Number of rows."""
    images: int
    """Number of images, without the unreadable ones."""
    sha256: str
    """SHA-256 of the file."""


@dataclass(frozen=True)
class TokenManifest:
    """Contents of a token data set."""

    fingerprint: str
    """Fingerprint of the tokenizer."""
    vocab_size: int
    """Tokens are in [0, vocab_size)."""
    grids: list[list[int]] | None
    """Shape of each scale, coarse to fine; None where images differ in size."""
    image_size: list[int] | None
    """Height and width of the tokenized area; None where images differ."""
    transform: dict[str, Any]
    """Size, crops and mirror images taken of each image."""
    source: str
    """Source of the images, as given by the user."""
    shards: list[Shard]
    """The shards, in order."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Images that could not be read, with the reason."""
    class_names: list[str] = field(default_factory=list)
    """Names of the labels 0, 1, 2, …; empty if there are no labels."""
    batch_mismatch: float | None = None
    """Fraction of tokens that differ when images are encoded one by one, measured on the first batch. None on devices
    where results cannot depend on the batch, because all batches have the same composition there."""

    @property
    def rows(self) -> int:
        """Number of rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def images(self) -> int:
        """Number of images in all shards."""
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
        FileNotFoundError: no manifest. The message says whether a set is being made there.
        ValueError: the manifest is damaged, has another version, or is not a manifest.
    """
    if not storage.exists(MANIFEST):
        if storage.exists("progress"):
            raise FileNotFoundError(f"{storage}: incomplete; run the same smalti tokenize command again to finish it")
        raise FileNotFoundError(f"{storage}: not a token data set (it has no {MANIFEST})")
    try:
        _, content = open_sealed(storage.read(MANIFEST), FORMAT, VERSION)
        shards = [Shard(**shard) for shard in content.pop("shards")]
        return TokenManifest(**content, shards=shards)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{storage}/{MANIFEST}: damaged: {error}") from error


def verify(storage: Storage) -> list[str]:
    """All problems of a token data set, one line each; empty if there are none.

    Reads every byte. Shards must exist, be unaltered and have the number of rows in the manifest, and indices must be
    within the vocabulary. A file that is not in the manifest is reported, too.
    """
    manifest = read_manifest(storage)
    problems = [problem for shard in manifest.shards if (problem := _problem(storage, manifest, shard))]
    known = {shard.file for shard in manifest.shards}
    strangers = [name for name in storage.names() if name.endswith(".parquet") and name not in known]
    return problems + [f"{storage}/{name}: not in the manifest" for name in strangers]


def read_rows(storage: Storage, manifest: TokenManifest, shard: Shard) -> list[TokenRow]:
    """All rows of a shard, checked against the manifest.

    Raises:
        FileNotFoundError: the shard is missing.
        ValueError: the shard was altered or contradicts the manifest.
    """
    path = f"{storage}/{shard.file}"
    try:
        data = storage.read(shard.file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: missing") from error
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise ValueError(f"{path}: altered (SHA-256 differs)")
    try:
        rows = read_shard(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(rows) != shard.rows or len({row.key for row in rows}) != shard.images:
        raise ValueError(f"{path}: got {len(rows)} rows, expected {shard.rows} by the manifest")
    for row in rows:
        if not _fits(row, manifest):
            raise ValueError(f"{path}: tokens of {row.key} contradict the manifest")
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
