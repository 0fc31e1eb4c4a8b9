"""Inspect a token data set: verify it, describe its contents, decode one row."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from smalti.data import save_image
from smalti.formats.storage import Storage
from smalti.formats.token_arrays import damaged_arrays
from smalti.formats.token_set import TokenManifest, read_manifest, read_rows, verify
from smalti.formats.token_shards import TokenRow
from smalti.tokenizers import Tokens
from smalti.zoo import open_tokenizer


@dataclass(frozen=True)
class TokensConfig:
    """Which token data set to inspect."""

    tokens: str
    """Token data set: a folder or a URL."""


@dataclass(frozen=True)
class ShowTokensConfig:
    """Decode one row of a token data set to an image."""

    tokens: str
    """Token data set: a folder or a URL."""
    key: str
    """Key of the image, such as its path in the folder of images."""
    out: Path
    """Image file to write."""
    view: int = 0
    """Number of the view (crop or mirror image) of this image."""
    force: bool = False
    """Replace an existing file."""


def check_tokens(config: TokensConfig) -> tuple[str, ...]:
    """The problems of a token data set and of the arrays unpacked from it, one line each; empty if there are none."""
    storage = Storage(config.tokens)
    return (*verify(storage), *damaged_arrays(storage))


def describe_tokens(config: TokensConfig) -> dict[str, str]:
    """The contents of a token data set, name → value."""
    storage = Storage(config.tokens)
    manifest = read_manifest(storage)
    return {
        "images": f"{manifest.images}, unreadable: {len(manifest.unreadable)}",
        "rows": f"{manifest.rows}, in shards: {len(manifest.shards)}",
        "tokens per row": _tokens(manifest),
        "image width x height": _width_height(manifest),
        "vocabulary size": str(manifest.vocab_size),
        "classes": str(len(manifest.class_names)) if manifest.class_names else "no names",
        "tokenizer": manifest.fingerprint[:12] + "…",
        "images from": manifest.source,
    }


def show_tokens(config: ShowTokensConfig) -> TokenRow:
    """Decode one row with the tokenizer of the set, and write the image.

    Raises:
        FileNotFoundError: no such set, a missing shard, or a set without its tokenizer.
        FileExistsError: the image exists and `force` is off.
        ValueError: no such row, or a damaged shard.
    """
    storage = Storage(config.tokens)
    manifest = read_manifest(storage)
    row = _find(storage, manifest, config)
    if storage.local is None:
        raise ValueError(f"tokens: got {config.tokens}, expected a local folder; copy the set here first")
    tokenizer = open_tokenizer(storage.local / "tokenizer")
    size = manifest.image_size or [round(row.crop[2] - row.crop[0]), round(row.crop[3] - row.crop[1])]
    sequence = torch.from_numpy(row.indices)[None]
    tokens = Tokens.unflatten(sequence, row.grids, (size[0], size[1]), manifest.vocab_size, torch.uint8)
    save_image(config.out, tokenizer.decode(tokens)[0], force=config.force)
    return row


def _find(storage: Storage, manifest: TokenManifest, config: ShowTokensConfig) -> TokenRow:
    for shard in manifest.shards:
        for row in read_rows(storage, manifest, shard):
            if (row.key, row.view) == (config.key, config.view):
                return row
    raise ValueError(f"key: no view {config.view} of {config.key!r} in {config.tokens}")


def _tokens(manifest: TokenManifest) -> str:
    if manifest.grids is None:
        return "varies"
    scales = " ".join("x".join(map(str, grid)) for grid in manifest.grids)
    return f"{sum(prod(grid) for grid in manifest.grids)} ({scales})"


def _width_height(manifest: TokenManifest) -> str:
    return "varies" if manifest.image_size is None else " x ".join(map(str, manifest.image_size[::-1]))
