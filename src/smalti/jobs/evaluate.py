"""How good is a tokenizer on a set of images: quality of the pictures, price of the tokens, health of the codebook.

Every number is over the whole set and does not depend on the batch size. Images go the way a user's go, through
`encode` and `decode`, so what is measured is what a token file would give back. How PSNR and SSIM are taken is said in
`smalti.metrics.image_quality`, what collapse means in `smalti.metrics.code_usage`, who else judges in
`smalti.evaluation.judges`. Beside the numbers stands all that is needed to get them again.
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
    """What to measure, on what."""

    run: str
    """The tokenizer: a name of the box, a folder with a saved model, a published checkpoint, or a name on the hub."""
    data: str
    """Images: a folder, one file, or a name such as "embedded:test"."""
    min_usage: float = 0.1
    """The codebook counts as collapsed if fewer than this share of the codes that the set could have used were used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_usage <= 1:
            raise ValueError(f"min_usage: got {self.min_usage}, expected a number from 0 to 1")


@dataclass(frozen=True)
class EvaluationResult:
    """Every number that an evaluation gives."""

    run: str
    """The tokenizer, as it was named."""
    fingerprint: str
    """Which weights it had."""
    data: str
    """The images, as they were named."""
    protocol: Protocol
    """How the images were prepared."""
    images_sha256: str
    """Hash of the prepared pixels: which images they were."""
    unreadable: dict[str, str]
    """Files that did not decode, and why; they are in no number."""
    quality: dict[str, float | int | None]
    """PSNR, SSIM and how many images they are of; see `smalti.metrics.ImageQuality.compute`."""
    judgments: tuple[Judgment, ...]
    """What the networks say."""
    left_out: dict[str, str]
    """What could not be measured, and why."""
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
    warnings: tuple[str, ...]
    """What a reader of the numbers must know."""
    config: EvaluateConfig
    """The settings; the size is the one that was used."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images were brought to; None if each kept its own."""
        return self.protocol.size

    @property
    def rfid(self) -> float | None:
        """The Fréchet distance on FID's own network and weights, if it was among the judges."""
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
        config: what and on what.
        on_images: told (images done, images in all) after every batch, for a progress bar.

    Raises:
        FileNotFoundError: no such run or data, or no weights of a judge that was asked for by name.
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
