"""What `evaluate`, `compare`, `evaluate_samples` share before anything is measured: options, size, images."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxtyping import UInt8
from torch import Tensor

from smalti.data import ImageSource, TransformConfig, ordered_batches
from smalti.data.loader import check_workers
from smalti.ops.pixels import to_uint8
from smalti.training import read_settings
from smalti.zoo import saved_folder

PIXELS_AT_ONCE = 2**20
"""Pictures at their own size can be huge: so many pixels of them, or one picture, pass the network at once."""

Size = int | tuple[int, int] | Literal["trained", "native"]


@dataclass(frozen=True, kw_only=True)
class JudgingConfig:
    """How networks judge."""

    batch_size: int = 16
    """Images at a time; changes speed and memory, not the result."""
    workers: int = 0
    """Processes that read images."""
    device: str = "auto"
    """Where to compute: "cpu", "cuda", ..., or "auto" for cuda if there is one."""
    judges: tuple[str, ...] = ("auto",)
    """Networks that judge."""
    weights: Path | None = None
    """Folder to look for the judges' weights in first; null: only the usual places."""
    download: bool = False
    """Fetch weights that are nowhere on this machine."""
    statistics: Path | None = None
    """Folder for the feature statistics of the originals: read where they are there, else written; null: nowhere."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: got {self.batch_size}, expected at least 1")
        check_workers(self.workers)


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(JudgingConfig):
    """How to measure tokenizers."""

    size: Size = "trained"
    """Size at which images are judged: a side or [height, width] (resized to cover it, then cropped to the centre),
    "native" for each image's own, "trained" for the size in RUN/train.yaml, native where there is none."""
    judges: tuple[str, ...] = ("auto",)
    """Networks that judge: "lpips", "fid_inception", "efficientnet_lite0", "hed_vgg16", files with convolutional
    features; "auto" is the first three as far as their weights are here, [] is none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.size, str):
            TransformConfig(size=_pair(self.size))  # refuses sides that no picture has


def prepared_images(
    source: ImageSource,
    size: tuple[int, int] | None,
    config: "JudgingConfig",
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[UInt8[Tensor, "b c h w"], tuple[str, ...]]]:
    """Batches (B, C, H, W) of one size each, with their keys; at their own size also within a limit of pixels."""
    for batch in ordered_batches(source, TransformConfig(size=size), config.batch_size, config.workers, indices):
        limit = config.batch_size if size else max(1, PIXELS_AT_ONCE // math.prod(batch.image.shape[2:]))
        for start in range(0, len(batch), limit):
            yield to_uint8(batch.image[start : start + limit]), batch.keys[start : start + limit]


def target_size(size: Size, runs: Sequence[str]) -> tuple[int, int] | None:
    """The size that images are brought to, or None for each its own.

    Raises:
        ValueError: the recipes of the runs do not say one size, or not the same.
    """
    if not isinstance(size, str):
        return _pair(size)
    if size == "native":
        return None
    sizes = {run: _trained_size(run) for run in runs if (saved_folder(run) / "train.yaml").is_file()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{run} {size}" for run, size in sizes.items())
        raise ValueError(f"size: trained at different sizes ({told}); give one, or 'native'")
    return next(iter(sizes.values()), None)


def _trained_size(run: str) -> tuple[int, int] | None:
    try:
        recipe = read_settings(saved_folder(run))
        assert recipe is not None
        size = recipe["input"]["size"]
        return None if size is None else _pair(size)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"size: {run}/train.yaml does not say input.size; give a size or 'native'") from error


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)
