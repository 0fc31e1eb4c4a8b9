"""A publisher's checkpoint to a folder of ours: config.json and safetensors, which every other command takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smalti.formats.atomic import check_replaceable, replace_folder
from smalti.zoo import read_published

OPTIONS = (
    "patch_nums", "metric", "image_range", "num_heads", "norm_groups", "phi_ratio", "levels", "bits_per_group",
)  # fmt: skip
"""Fields of the config that are handed to the family."""


@dataclass(frozen=True)
class ImportConfig:
    """Turn a published checkpoint into a tokenizer folder."""

    checkpoint: str
    """The publisher's file (.pth .pt .ckpt .bin .safetensors), or a folder with weights and config.json."""
    out: Path
    """The folder to write."""
    family: str | None = None
    """Whose checkpoint it is; null: recognised by its tensor names."""
    patch_nums: tuple[int, ...] | None = None
    """Sides of the scales of a multi-scale tokenizer; null: as published."""
    metric: Literal["euclidean", "cosine", "dot"] | None = None
    """How the nearest code is found; null: as published."""
    image_range: tuple[float, float] | None = None
    """What the darkest and the brightest pixel were for the publisher's network; null: as published."""
    num_heads: int | None = None
    """Attention heads, where tensors do not show them; null: as published."""
    norm_groups: int | None = None
    """Groups of group normalisation; null: as published."""
    phi_ratio: float | None = None
    """Share of the convolution in VAR's φ; null: as published."""
    levels: tuple[int, ...] | None = None
    """Values of each component of a rounded code (Cosmos); null: as the file says or as published."""
    bits_per_group: int | None = None
    """Bits of each token of WeTok; null: as published."""
    force: bool = False
    """Replace an existing folder."""

    def options(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}


@dataclass(frozen=True)
class ImportResult:
    """What was imported."""

    family: str
    """Whose checkpoint it was."""
    why: str
    """How that was found."""
    assumed: Mapping[str, Any]
    """Options that tensors do not tell and nobody gave, with their published values."""
    source: Mapping[str, Any]
    """Title, url and licence, as they stand in config.json."""
    model: str
    """Class of the tokenizer."""
    vocab_size: int
    """Number of codes."""
    stride: int
    """Pixels a side of one latent cell."""
    parameters: int
    """Number of weights."""
    ignored: tuple[str, ...]
    """What the file holds besides: optimizer, loss, discriminator …"""


def import_checkpoint(config: ImportConfig) -> ImportResult:
    """Read, check, write; the folder appears complete or not at all.

    Raises:
        FileNotFoundError: no such checkpoint.
        FileExistsError: the folder exists and `force` is off.
        ValueError: a checkpoint that is damaged, does not fit, or would have to run code.
    """
    check_replaceable(config.out, config.force, folder=True)
    published = read_published(config.checkpoint, config.family, **config.options())
    tokenizer = published.model
    with replace_folder(config.out, config.force) as folder:
        tokenizer.save_pretrained(folder)
    return ImportResult(
        family=published.family,
        why=published.why,
        assumed=published.assumed,
        source=tokenizer.config()["source"],
        model=type(tokenizer).__name__,
        vocab_size=tokenizer.vocab_size,
        stride=tokenizer.stride,
        parameters=sum(parameter.numel() for parameter in tokenizer.parameters()),
        ignored=published.ignored,
    )
