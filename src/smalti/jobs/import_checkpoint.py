"""Convert a published checkpoint to a tokenizer folder (config.json, safetensors) that every other command takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smalti.formats.atomic import check_replaceable, replace_folder
from smalti.zoo import read_published

OPTIONS = (
    "patch_nums", "metric", "image_range", "num_heads", "norm_groups", "phi_ratio", "levels", "bits_per_group",
)  # fmt: skip
"""Fields of the config that are passed to the loader of the family."""


@dataclass(frozen=True)
class ImportConfig:
    """Convert a published checkpoint to a tokenizer folder that every other command takes."""

    checkpoint: str
    """Published checkpoint (.pth .pt .ckpt .bin .safetensors), or a folder with weights and config.json."""
    out: Path
    """Folder to write."""
    family: str | None = None
    """Family of the checkpoint, for example llamagen; null: recognised by the tensor names."""
    patch_nums: tuple[int, ...] | None = None
    """Side lengths of the scales of a multi-scale tokenizer; null: as published."""
    metric: Literal["euclidean", "cosine", "dot"] | None = None
    """Distance or similarity for the search of the nearest code; null: as published."""
    image_range: tuple[float, float] | None = None
    """Input values of the published network for the darkest and the brightest pixel; null: as published."""
    num_heads: int | None = None
    """Number of attention heads, if the tensors do not show it; null: as published."""
    norm_groups: int | None = None
    """Number of groups in group normalisation; null: as published."""
    phi_ratio: float | None = None
    """Weight of the convolution in VAR's φ layers; null: as published."""
    levels: tuple[int, ...] | None = None
    """Number of values of each dimension of a finite scalar code (Cosmos); null: as in the file or as published."""
    bits_per_group: int | None = None
    """Bits per token of WeTok; null: as published."""
    force: bool = False
    """Replace an existing folder."""

    def options(self) -> dict[str, Any]:
        """The options that are set."""
        return {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}


@dataclass(frozen=True)
class ImportResult:
    """The imported tokenizer."""

    family: str
    """Family of the checkpoint."""
    why: str
    """How the family was recognised."""
    assumed: Mapping[str, Any]
    """Options that neither the tensors nor the user set, with their published values."""
    source: Mapping[str, Any]
    """Title, URL and licence, as in config.json."""
    model: str
    """Class of the tokenizer."""
    vocab_size: int
    """Number of codes."""
    stride: int
    """Side in pixels of the area that one token covers."""
    parameters: int
    """Number of parameters."""
    ignored: tuple[str, ...]
    """Other contents of the file: optimizer, loss, discriminator …"""


def import_checkpoint(config: ImportConfig) -> ImportResult:
    """Read, check and write; the folder appears complete or not at all.

    Raises:
        FileNotFoundError: no such checkpoint.
        FileExistsError: the folder exists and `force` is off.
        ValueError: a checkpoint that is damaged, does not fit, or can only be read by running code.
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
