"""Measure samples: a folder of generated images against a set of reference images.

Samples and reference images are prepared by the protocol of reconstructions (`evaluate.py`) and measured by the same
networks, under the same names. There are two differences: the Fréchet distance on FID's own network and weights is
called gFID here, and the Inception Score is added. Compare two generators at equal numbers of samples and against the
same reference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Literal

import torch

from smalti.blocks import FIDInception
from smalti.data import ImageSource, TransformConfig, open_images
from smalti.evaluation.inputs import JudgingConfig, height_and_width, prepared_images
from smalti.evaluation.judges import Judges, open_judges
from smalti.evaluation.measurement import Judgment, Originals, compared, warnings_about
from smalti.jobs.sample import GRID, GROWTH
from smalti.metrics import (
    FeatureAccumulator,
    FeatureStatistics,
    PixelHash,
    Protocol,
    inception_score,
    read_statistics,
)
from smalti.metrics.inception_score import SPLITS
from smalti.ops.device import find_device
from smalti.ops.pixels import to_float

CHANNELS = 3
"""Samples and reference are compared in colour; a grey image gets three equal channels."""


@dataclass(frozen=True)
class EvaluateSamplesConfig(JudgingConfig):
    """Which samples to measure, against which reference."""

    samples: str
    """Generated images: the folder of smalti sample, or any other source of images."""
    data: str
    """Reference images, usually the training set of the generator; or a file of their feature statistics (gFID)."""
    size: int | tuple[int, int] | Literal["samples"] = field(default="samples", kw_only=True)
    """Size at which both are compared: a side or [height, width] (resized, then cropped to the centre); "samples": size
    of the first sample."""
    judges: tuple[str, ...] = field(default=("auto",), kw_only=True)
    """Networks to compare features with: "fid_inception", "efficientnet_lite0", files with convolutional features;
    "auto": the first two, if their weights are on this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.size, str):
            TransformConfig(size=height_and_width(self.size))  # refuses impossible sides


@dataclass(frozen=True)
class SamplesResult:
    """All numbers of an evaluation of samples."""

    samples: str
    """The samples, as named in the config."""
    samples_count: int
    """Number of samples that could be read."""
    samples_sha256: str
    """Hash of the prepared pixels of the samples."""
    data: str
    """The reference, as named in the config."""
    images: int
    """Number of reference images."""
    images_sha256: str
    """Hash of the prepared pixels of the reference images."""
    protocol: Protocol
    """How samples and reference were prepared."""
    judgments: tuple[Judgment, ...]
    """Results of the metric networks."""
    left_out: dict[str, str]
    """Measure → why it could not be taken."""
    unreadable: dict[str, str]
    """Sample or image → why it did not decode; these files are not counted in any number."""
    warnings: tuple[str, ...]
    """Warnings about the numbers."""
    config: EvaluateSamplesConfig
    """The settings, with the size that was used."""

    @property
    def gfid(self) -> float | None:
        """The Fréchet distance on FID's own network and weights; None if that network was not used."""
        return next((judgment.frechet_distance for judgment in self.judgments if judgment.is_fid), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the keys are stable within one value of `version`."""
        return {
            "version": 1,
            "smalti": version("smalti"),
            "samples": self.samples,
            "samples_count": self.samples_count,
            "samples_sha256": self.samples_sha256,
            "data": self.data,
            "images": self.images,
            "images_sha256": self.images_sha256,
            "protocol": self.protocol.to_dict(),
            "gfid": self.gfid,
            "judges": [judgment.to_dict() for judgment in self.judgments],
            "left_out": self.left_out,
            "warnings": list(self.warnings),
            "unreadable_count": len(self.unreadable),
            "unreadable": self.unreadable,
        }


@dataclass(frozen=True, eq=False)
class _Reference:
    """Statistics of the reference images."""

    statistics: Mapping[str, FeatureStatistics]
    images: int
    sha256: str
    unreadable: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


def evaluate_samples(
    config: EvaluateSamplesConfig, on_images: Callable[[int, int], None] | None = None
) -> SamplesResult:
    """Measure samples.

    Args:
        config: which samples, against which reference.
        on_images: called with (images done, images in all), first for the samples, then for the reference.

    Raises:
        FileNotFoundError: no such samples or data, or no weights of a network named in `judges`.
        ValueError: no image could be read, fewer than two samples or images, or statistics that do not fit.
    """
    device = find_device(config.device)
    judges = open_judges(config.judges, [], device, config.weights, config.download)
    if not judges.sets:
        reasons = [f"no {what}: {reason}" for what, reason in judges.left_out.items()]
        complaint = f"judges: got {list(config.judges)}, expected one with weights on this machine"
        raise ValueError("; ".join([complaint, *reasons]))
    source = open_images(config.samples, channels=CHANNELS)
    protocol = _protocol(config, source)
    accumulators = [FeatureAccumulator(network) for network in judges.sets]
    pixels, count = PixelHash(), 0
    for image, _ in prepared_images(source, protocol.size, config, _drawn(source)):
        image = image.to(device)
        pixels.update(image)
        for accumulator in accumulators:
            accumulator.update(accumulator.network.features(to_float(image)))
        count += image.shape[0]
        if on_images is not None:
            on_images(count, len(source))
    if count < 2:
        raise ValueError(f"samples: got {count} readable image(s) in {config.samples}, expected at least 2")
    reference = _reference(config, protocol, judges, device, on_images)
    judgments = tuple(
        _judged(accumulator, reference.statistics[accumulator.network.name])
        for accumulator in accumulators
        if accumulator.network.name in reference.statistics
    )
    few = count < SPLITS and any(judgment.is_fid for judgment in judgments)
    left_out = {"Inception Score": f"got {count} samples, expected at least {SPLITS}"} if few else {}
    return SamplesResult(
        samples=config.samples,
        samples_count=count,
        samples_sha256=pixels.compute(),
        data=config.data,
        images=reference.images,
        images_sha256=reference.sha256,
        protocol=protocol,
        judgments=judgments,
        left_out={**judges.left_out, **reference.left_out, **left_out},
        unreadable={**source.unreadable, **reference.unreadable},
        warnings=warnings_about(count, judgments),
        config=replace(config, size=protocol.size or "samples"),
    )


def _protocol(config: EvaluateSamplesConfig, source: ImageSource) -> Protocol:
    """How samples and reference are prepared: as the statistics file says, or at the size of the first sample."""
    if _is_statistics(config.data):
        told = read_statistics(config.data, "gFID").protocol
        protocol = Protocol(**{**told, "size": None if told["size"] is None else height_and_width(told["size"])})
        if protocol != Protocol.of_size(protocol.size, CHANNELS):
            raise ValueError(f"statistics: {config.data} was taken with {told}, which this version does not support")
        if not isinstance(config.size, str) and height_and_width(config.size) != protocol.size:
            raise ValueError(f"size: got {config.size}, expected {protocol.size}, the size of {config.data}")
        return protocol
    if not isinstance(config.size, str):
        return Protocol.of_size(height_and_width(config.size), CHANNELS)
    image, _ = next(prepared_images(source, None, config, _drawn(source)), (None, None))
    if image is None:
        raise ValueError(f"samples: no readable image in {config.samples}")
    return Protocol.of_size((image.shape[2], image.shape[3]), CHANNELS)


def _drawn(source: ImageSource) -> list[int]:
    """All images except the pictures of all samples that `smalti sample` writes beside them."""
    return [index for index in range(len(source)) if source.key(index) not in (GRID, GROWTH)]


def _reference(
    config: EvaluateSamplesConfig,
    protocol: Protocol,
    judges: Judges,
    device: torch.device,
    on_images: Callable[[int, int], None] | None,
) -> _Reference:
    """Statistics of the reference images: from their file, or computed from the images."""
    if _is_statistics(config.data):
        known = read_statistics(config.data, "gFID")
        network = known.statistics.network
        others = {each.name: f"{config.data} is of {network}" for each in judges.sets if each.name != network}
        if len(others) == len(judges.sets):
            raise ValueError(f"statistics: {config.data} is of {network}, expected one of {', '.join(others)}")
        return _Reference({network: known.statistics}, known.statistics.count, known.images_sha256, {}, others)
    source = open_images(config.data, channels=CHANNELS)
    originals = Originals(judges, protocol, config.statistics, "gFID")
    for image, _ in prepared_images(source, protocol.size, config):
        originals.update(image.to(device))
        if on_images is not None:
            on_images(originals.images + len(source.unreadable), len(source))
    if originals.images < 2:
        raise ValueError(f"data: got {originals.images} readable image(s) in {config.data}, expected at least 2")
    return _Reference(originals.statistics(), originals.images, originals.sha256, source.unreadable)


def _judged(accumulator: FeatureAccumulator, reference: FeatureStatistics) -> Judgment:
    """The result of one network; FID's own network also gives the Inception Score."""
    ours = accumulator.compute()
    judgment = replace(compared(ours, reference), kind="gFID")
    if isinstance(accumulator.network, FIDInception) and ours.count >= SPLITS:
        assert ours.features is not None
        logits = accumulator.network.cpu().logits(ours.features)
        return replace(judgment, inception_score=inception_score(logits))
    return judgment


def _is_statistics(data: str) -> bool:
    return data.endswith(".safetensors")
