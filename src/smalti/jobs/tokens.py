"""What can be asked of a token data set: is it whole, what is in it, what does one row look like."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from smalti.data import save_image
from smalti.formats.storage import Storage
from smalti.formats.token_set import TokenManifest, read_manifest, verify
from smalti.formats.token_shards import TokenRow, read_shard
from smalti.tokenizers import Tokens
from smalti.zoo import open_tokenizer

__all__ = ["ShowTokensConfig", "TokensConfig", "check_tokens", "describe_tokens", "show_tokens"]


@dataclass(frozen=True)
class TokensConfig:
    """Which token data set."""

    tokens: str
    """A token data set: a folder or a URL."""


@dataclass(frozen=True)
class ShowTokensConfig:
    """Decode one row of a token data set."""

    tokens: str
    """A token data set: a folder or a URL."""
    key: str
    """Which image, by its key."""
    out: Path
    """The image to write."""
    view: int = 0
    """Which of its views."""
    force: bool = False
    """Replace an existing file."""


def check_tokens(config: TokensConfig) -> tuple[str, ...]:
    """Everything that is wrong with a token data set, a line each; empty if it is whole."""
    return tuple(verify(Storage(config.tokens)))


def describe_tokens(config: TokensConfig) -> dict[str, str]:
    """What a token data set holds, name → value."""
    storage = Storage(config.tokens)
    manifest = read_manifest(storage)
    return {
        "images": f"{manifest.images}, {len(manifest.unreadable)} more could not be read",
        "rows": f"{manifest.rows} in {len(manifest.shards)} shards",
        "tokens a row": _tokens(manifest),
        "image size": "each its own"
        if manifest.image_size is None
        else " x ".join(map(str, manifest.image_size[::-1])),
        "vocabulary": str(manifest.vocab_size),
        "classes": str(len(manifest.class_names)) if manifest.class_names else "none named",
        "tokenizer": manifest.fingerprint[:12] + "…",
        "images from": manifest.source,
    }


def show_tokens(config: ShowTokensConfig) -> TokenRow:
    """Decode one row with the tokenizer in the set, and write the image.

    Raises:
        FileNotFoundError: no such set, or one without its tokenizer.
        FileExistsError: the image exists and `force` is off.
        ValueError: no such row.
    """
    storage = Storage(config.tokens)
    manifest = read_manifest(storage)
    row = _find(storage, manifest, config)
    if storage.local is None:
        raise ValueError(f"tokens: {config.tokens} is not on this machine; copy its tokenizer/ and use smalti decode")
    tokenizer = open_tokenizer(storage.local / "tokenizer")
    size = manifest.image_size or [round(row.crop[2] - row.crop[0]), round(row.crop[3] - row.crop[1])]
    sequence = torch.from_numpy(row.indices)[None]
    tokens = Tokens.unflatten(sequence, row.grids, (size[0], size[1]), manifest.vocab_size, torch.uint8)
    save_image(config.out, tokenizer.decode(tokens)[0], force=config.force)
    return row


def _find(storage: Storage, manifest: TokenManifest, config: ShowTokensConfig) -> TokenRow:
    for shard in manifest.shards:
        for row in read_shard(storage.read(shard.file)):
            if (row.key, row.view) == (config.key, config.view):
                return row
    raise ValueError(f"key: no view {config.view} of {config.key!r} in {config.tokens}")


def _tokens(manifest: TokenManifest) -> str:
    if manifest.grids is None:
        return "differ"
    scales = " ".join("x".join(map(str, grid)) for grid in manifest.grids)
    return f"{sum(prod(grid) for grid in manifest.grids)} ({scales})"
