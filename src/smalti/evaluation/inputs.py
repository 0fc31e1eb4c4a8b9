"""Shared by `evaluate`, `compare` and `evaluate_samples`: options, size and preparation of the images."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxtyping import UInt8
from torch import Tensor

from smalti.checks import at_least
from smalti.data import ImageSource, TransformConfig, ordered_batches
from smalti.data.loader import check_workers
from smalti.ops.pixels import to_uint8
from smalti.training import read_settings
from smalti.zoo import saved_folder

PIXELS_AT_ONCE = 2**20
"""Largest number of pixels per batch for images at their own size; a single larger image is a batch of its own."""

Size = int | tuple[int, int] | Literal["trained", "native"]


@dataclass(frozen=True, kw_only=True)
class JudgingConfig:
    """Options of the metric networks."""

    batch_size: int = 16
    """Images per batch; changes speed and memory, not the result."""
    workers: int = 0
    """Processes that read images."""
    device: str = "auto"
    """Device to compute on: "cpu", "cuda", ...; "auto": cuda if available."""
    judges: tuple[str, ...] = ("auto",)
    """Metric networks."""
    weights: Path | None = None
    """Folder to search first for the weights of the metric networks; null: only the default folders."""
    download: bool = False
    """Download weights that are not on this machine."""
    statistics: Path | None = None
    """Folder to cache the feature statistics of the originals in; null: no cache."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)
        check_workers(self.workers)


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(JudgingConfig):
    """Options for measuring tokenizers."""

    size: Size = "trained"
    """Size of the images: a side or [height, width] (resized, then cropped to the centre); "native": each image's own
    size; "trained": the size in RUN/train.yaml, or native without one."""
    judges: tuple[str, ...] = ("auto",)
    """Metric networks: "lpips", "fid_inception", "efficientnet_lite0", "hed_vgg16", files with convolutional features;
    "auto": the first three, if their weights are on this machine; []: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.size, str):
            TransformConfig(size=height_and_width(self.size))  # refuses impossible sides


def prepared_images(
    source: ImageSource,
    size: tuple[int, int] | None,
    config: "JudgingConfig",
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[UInt8[Tensor, "b c h w"], tuple[str, ...]]]:
    """Batches (B, C, H, W) of images of one size, with their keys; native sizes: at most `PIXELS_AT_ONCE` per batch."""
    for batch in ordered_batches(source, TransformConfig(size=size), config.batch_size, config.workers, indices):
        limit = config.batch_size if size else max(1, PIXELS_AT_ONCE // math.prod(batch.image.shape[2:]))
        for start in range(0, len(batch), limit):
            yield to_uint8(batch.image[start : start + limit]), batch.keys[start : start + limit]


def target_size(size: Size, runs: Sequence[str]) -> tuple[int, int] | None:
    """The size to which images are resized; None: native sizes.

    Raises:
        ValueError: a run's recipe is damaged or has no size, or the sizes of the runs differ.
    """
    if not isinstance(size, str):
        return height_and_width(size)
    if size == "native":
        return None
    sizes = {run: _trained_size(run) for run in runs if (saved_folder(run) / "train.yaml").is_file()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{run} {size}" for run, size in sizes.items())
        raise ValueError(f"size: got 'trained' for runs of different sizes ({told}), expected one size or 'native'")
    return next(iter(sizes.values()), None)


def _trained_size(run: str) -> tuple[int, int] | None:
    recipe = read_settings(saved_folder(run))
    assert recipe is not None
    try:
        size = recipe["input"]["size"]
        return None if size is None else height_and_width(size)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"size: {run}/train.yaml has no input.size, expected a size or 'native'") from error


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """A side, or [height, width], as (height, width)."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)
