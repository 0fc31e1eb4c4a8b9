"""How good is a tokenizer on a set of images: quality of the pictures, price of the tokens, health of the codebook.

Every number is over the whole set and does not depend on the batch size. Images go the way a user's go, through
`encode` and `decode`, so what is measured is what a token file would give back. How PSNR and SSIM are taken is said in
`smalti.metrics.image_quality`, what collapse means in `smalti.metrics.code_usage`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor

from smalti.data import ImageSource, TransformConfig, open_images, ordered_batches
from smalti.formats.bits import bits_per_index
from smalti.metrics import CodeUsage, CodeUsageResult, ImageQuality
from smalti.training.runtime import find_device
from smalti.zoo import load

PIXELS_AT_ONCE = 2**20
"""Pictures at their own size can be huge: so many pixels of them, or one picture, pass the network at once."""

Size = int | tuple[int, int] | Literal["trained", "native"]


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure, on what."""

    run: str
    """Folder of a trained tokenizer (config.json, model.safetensors), or its name on the hub."""
    data: str
    """Images: a folder, one file, or a name such as "embedded:test"."""
    size: Size = "trained"
    """Size at which images are judged: a side or [height, width] (resized to cover it, then cropped to the centre),
    "native" for each image's own, "trained" for the size in RUN/train.yaml, native where there is none."""
    batch_size: int = 16
    """Images at a time; changes speed and memory, not the result."""
    workers: int = 0
    """Processes that read images."""
    device: str = "auto"
    """Where to compute: "cpu", "cuda", ..., or "auto" for cuda if there is one."""
    min_usage: float = 0.1
    """The codebook counts as collapsed if fewer than this share of the codes that the set could have used were used."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: got {self.batch_size}, expected at least 1")
        if self.workers < 0:
            raise ValueError(f"workers: got {self.workers}, expected at least 0")
        if not 0 <= self.min_usage <= 1:
            raise ValueError(f"min_usage: got {self.min_usage}, expected a number from 0 to 1")
        if not isinstance(self.size, str) and min(_pair(self.size)) < 1:
            raise ValueError(f"size: got {self.size}, expected sides of at least 1")


@dataclass(frozen=True)
class EvaluationResult:
    """Every number that an evaluation gives."""

    run: str
    """The tokenizer, as it was named."""
    fingerprint: str
    """Which weights it had."""
    data: str
    """The images, as they were named."""
    size: tuple[int, int] | None
    """Height and width that images were brought to; None if each kept its own."""
    unreadable: dict[str, str]
    """Files that did not decode, and why; they are in no number."""
    quality: dict[str, float | int | None]
    """PSNR, SSIM and how many images they are of; see `smalti.metrics.ImageQuality.compute`."""
    tokens_per_image: float
    """Mean number of tokens of an image."""
    bits_per_pixel: float
    """Tokens * ceil(log2 K) / pixels, over the set: what a token file spends, without its header."""
    entropy_bits_per_pixel: float
    """The same with each scale's measured entropy for ceil(log2 K): an estimate of what an ideal order-0 coder that
    knows the frequencies would spend. No such file is written."""
    usage: CodeUsageResult
    """Usage, perplexity and entropy, per scale and over all."""
    collapse: tuple[str, ...]
    """Why the codebook is called collapsed; empty if it is healthy."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the keys are stable within one value of `version`."""
        scales = [
            {"scale": k, "largest_grid": list(grid), **asdict(statistics)}
            for k, (grid, statistics) in enumerate(zip(self.usage.grids, self.usage.scales, strict=True))
        ]
        return {
            "version": 1,
            "run": self.run,
            "fingerprint": self.fingerprint,
            "data": self.data,
            "size": None if self.size is None else list(self.size),
            **self.quality,
            "tokens_per_image": self.tokens_per_image,
            "bits_per_pixel": self.bits_per_pixel,
            "entropy_bits_per_pixel": self.entropy_bits_per_pixel,
            "vocab_size": self.usage.vocab_size,
            "codes": asdict(self.usage.total),
            "scales": scales,
            "collapsed": bool(self.collapse),
            "collapse": list(self.collapse),
            "unreadable_count": len(self.unreadable),
            "unreadable": self.unreadable,
        }


def evaluate(config: EvaluateConfig, on_images: Callable[[int, int], None] | None = None) -> EvaluationResult:
    """Measure a tokenizer on a set of images.

    Args:
        config: what and on what.
        on_images: told (images done, images in all) after every batch, for a progress bar.

    Raises:
        FileNotFoundError: no such run or data.
        ValueError: no image could be read, the tokenizer gives values that are not finite, or a bad value in a file.
    """
    device = find_device(config.device)
    tokenizer = load(config.run).to(device).eval()
    source = open_images(config.data, channels=tokenizer.image_channels)
    size = _target_size(config)
    quality = ImageQuality()
    usage: CodeUsage | None = None
    images = pixels = 0
    for image in _images(source, size, config):
        image = image.to(device)
        tokens = tokenizer.encode(image)
        quality.update(tokenizer.decode(tokens), image)
        usage = usage or CodeUsage(tokenizer.vocab_size, num_scales=len(tokens.grids))
        usage.update(tokens.indices)
        images += image.shape[0]
        pixels += image.shape[0] * math.prod(image.shape[2:])
        if on_images is not None:
            on_images(images + len(source.unreadable), len(source))
    assert usage is not None, "ordered_batches raises where no image can be read"
    codes = usage.compute()
    return EvaluationResult(
        run=config.run,
        fingerprint=tokenizer.fingerprint,
        data=config.data,
        size=size,
        unreadable=dict(source.unreadable),
        quality=quality.compute(),
        tokens_per_image=codes.total.tokens / images,
        bits_per_pixel=codes.total.tokens * bits_per_index(codes.vocab_size) / pixels,
        entropy_bits_per_pixel=math.fsum(scale.tokens * scale.entropy_bits for scale in codes.scales) / pixels,
        usage=codes,
        collapse=codes.collapse(config.min_usage),
    )


def _images(source: ImageSource, size: tuple[int, int] | None, config: EvaluateConfig) -> Iterator[Tensor]:
    """Batches (B, C, H, W) of one size each; pictures at their own size also within a limit of pixels."""
    for batch in ordered_batches(source, TransformConfig(size=size), config.batch_size, config.workers):
        limit = config.batch_size if size else max(1, PIXELS_AT_ONCE // math.prod(batch.image.shape[2:]))
        yield from batch.image.split(limit)


def _target_size(config: EvaluateConfig) -> tuple[int, int] | None:
    """The size that images are brought to, or None for each its own."""
    if not isinstance(config.size, str):
        return _pair(config.size)
    recipe = Path(config.run) / "train.yaml"
    if config.size == "native" or not recipe.is_file():
        return None
    try:
        size = yaml.safe_load(recipe.read_text(encoding="utf-8"))["input"]["size"]
        return None if size is None else _pair(size)
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"size: {recipe} does not say input.size; give a size or 'native'") from error


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)
