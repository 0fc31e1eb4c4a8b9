"""Measure a tokenizer on a set of images: image quality, bits per pixel, codebook usage.

Every number is over the whole set and does not depend on the batch size. Images pass through `encode` and `decode`, so
the measured images are those that a token file would give. `smalti.metrics.image_quality` defines PSNR and SSIM,
`smalti.metrics.code_usage` defines collapse, `smalti.evaluation.judges` the other networks. The result also holds
everything that is needed to repeat the measurement.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from smalti.data import open_images
from smalti.evaluation.inputs import MeasureConfig, prepared_images, target_size
from smalti.evaluation.judges import open_judges
from smalti.evaluation.measurement import (
    Judgment,
    Measurement,
    Originals,
    entropy_bits,
    stored_bits,
    usage_to_dict,
    warnings_about,
    warnings_about_quality,
)
from smalti.metrics import CodeUsageResult, Protocol
from smalti.ops.device import find_device
from smalti.zoo import open_tokenizer


@dataclass(frozen=True)
class EvaluateConfig(MeasureConfig):
    """Which tokenizer to measure, on which images."""

    run: str
    """Tokenizer: a built-in name, a folder with a saved model, a published checkpoint, or a name on the Hugging Face
    hub."""
    data: str
    """Images: a folder, one file, or a name such as "embedded:test"."""
    min_usage: float = 0.1
    """The codebook counts as collapsed if its usage is below this: used codes / codes that the set could have used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_usage <= 1:
            raise ValueError(f"min_usage: got {self.min_usage}, expected a number from 0 to 1")


@dataclass(frozen=True)
class EvaluationResult:
    """All numbers of an evaluation."""

    run: str
    """The tokenizer, as named in the config."""
    fingerprint: str
    """Fingerprint of the tokenizer."""
    data: str
    """The images, as named in the config."""
    protocol: Protocol
    """How the images were prepared."""
    images_sha256: str
    """Hash of the prepared pixels; identifies the images."""
    unreadable: dict[str, str]
    """File → why it did not decode; these files are not counted in any number."""
    quality: dict[str, float | int | None]
    """PSNR, SSIM and their numbers of images; see `smalti.metrics.ImageQuality.compute`."""
    judgments: tuple[Judgment, ...]
    """Results of the metric networks."""
    left_out: dict[str, str]
    """Measure → why it could not be taken."""
    tokens_per_image: float
    """Mean number of tokens per image."""
    bits_per_pixel: float
    """Tokens * ceil(log2 K) / pixels, over the set: the size of a token file without its header."""
    entropy_bits_per_pixel: float
    """The same with each scale's measured entropy in place of ceil(log2 K): an estimate for an ideal order-0 coder that
    knows the frequencies. No such file is written."""
    usage: CodeUsageResult
    """Usage, perplexity and entropy, per scale and over all scales."""
    collapse: tuple[str, ...]
    """Reasons why the codebook counts as collapsed; empty if it does not."""
    warnings: tuple[str, ...]
    """Warnings about the numbers."""
    config: EvaluateConfig
    """The settings, with the size that was used."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width to which images were resized; None if each kept its own size."""
        return self.protocol.size

    @property
    def rfid(self) -> float | None:
        """The Fréchet distance on FID's own network and weights; None if that network was not used."""
        return next((judgment.frechet_distance for judgment in self.judgments if judgment.is_fid), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the keys are stable within one value of `version`."""
        return {
            "version": 2,
            "smalti": version("smalti"),
            "run": self.run,
            "fingerprint": self.fingerprint,
            "data": self.data,
            "images_sha256": self.images_sha256,
            "protocol": self.protocol.to_dict(),
            **self.quality,
            "rfid": self.rfid,
            "judges": [judgment.to_dict() for judgment in self.judgments],
            "left_out": self.left_out,
            "tokens_per_image": self.tokens_per_image,
            "bits_per_pixel": self.bits_per_pixel,
            "entropy_bits_per_pixel": self.entropy_bits_per_pixel,
            **usage_to_dict(self.usage),
            "collapsed": bool(self.collapse),
            "collapse": list(self.collapse),
            "warnings": list(self.warnings),
            "unreadable_count": len(self.unreadable),
            "unreadable": self.unreadable,
        }


def evaluate(config: EvaluateConfig, on_images: Callable[[int, int], None] | None = None) -> EvaluationResult:
    """Measure a tokenizer on a set of images.

    Args:
        config: which tokenizer, on which images.
        on_images: called with (images done, images in all) after every batch, for a progress bar.

    Raises:
        FileNotFoundError: no such run or data, or no weights of a network named in `judges`.
        ValueError: no image could be read, the tokenizer gives values that are not finite, or a bad value in a file.
    """
    device = find_device(config.device)
    size = target_size(config.size, [config.run])
    tokenizer = open_tokenizer(config.run).to(device).eval()
    source = open_images(config.data, channels=tokenizer.image_channels)
    judges = open_judges(config.judges, [config.run], device, config.weights, config.download)
    protocol = Protocol.of_size(size, tokenizer.image_channels)
    originals = Originals(judges, protocol, config.statistics)
    measurement = Measurement(tokenizer, judges)
    for image, _ in prepared_images(source, size, config):
        image = image.to(device)
        originals.update(image)
        measurement.update(image)
        if on_images is not None:
            on_images(originals.images + len(source.unreadable), len(source))
    usage = measurement.usage()
    judgments = measurement.pictures.judgments(originals.statistics())
    quality = measurement.pictures.quality.compute()
    return EvaluationResult(
        run=config.run,
        fingerprint=tokenizer.fingerprint,
        data=config.data,
        protocol=protocol,
        images_sha256=originals.sha256,
        unreadable=dict(source.unreadable),
        quality=quality,
        judgments=judgments,
        left_out={**judges.left_out, **originals.left_out(judges)},
        tokens_per_image=usage.total.tokens / originals.images,
        bits_per_pixel=stored_bits(usage) / originals.pixels,
        entropy_bits_per_pixel=entropy_bits(usage) / originals.pixels,
        usage=usage,
        collapse=usage.collapse(config.min_usage),
        warnings=(*warnings_about_quality(config.run, quality), *warnings_about(originals.images, judgments)),
        config=replace(config, size="native" if size is None else size),
    )
