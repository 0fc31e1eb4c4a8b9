"""Shared by `evaluate`, `compare` and `evaluate_samples`: images pass the metric networks once, batch by batch.

`Originals` has the numbers of the original images, once for all tokenizers. `Pictures` has the numbers of any
reconstructions. `Measurement` adds the tokens of a tokenizer.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from smalti.blocks import FIDInception
from smalti.evaluation.judges import Judges
from smalti.formats.bits import bits_per_index
from smalti.metrics import (
    CodeUsage,
    CodeUsageResult,
    FeatureAccumulator,
    FeatureExtractor,
    FeatureStatistics,
    ImageQuality,
    InceptionScore,
    KernelDistance,
    PixelHash,
    Protocol,
    ReferenceStatistics,
    frechet_distance,
    kernel_distance,
    read_statistics,
    write_statistics,
)
from smalti.metrics.statistics_file import Kind
from smalti.ops.pixels import to_float, to_uint8
from smalti.tokenizers import Tokenizer, Tokens

SMALL_SET = 10_000
"""Below this many images a Fréchet distance depends strongly on their number."""


@dataclass(frozen=True)
class Judgment:
    """The result of one metric network on the reconstructions of a set of images."""

    name: str
    """Name of the network and its weights."""
    weights_sha256: str
    """Hash of the weights."""
    distance: float | None = None
    """Network for pairs: mean distance of reconstruction and image."""
    frechet_distance: float | None = None
    """Network for sets: Fréchet distance. It is rFID only with FID's own network and weights."""
    kernel_distance: KernelDistance | None = None
    """Network for sets: KID on its features."""
    inception_score: InceptionScore | None = None
    """Inception Score of samples, only with FID's own network and weights."""
    kind: Kind = "rFID"
    """Name of the Fréchet distance with FID's own network and weights."""

    @property
    def is_fid(self) -> bool:
        """Whether the Fréchet distance may be called FID."""
        return self.name == FIDInception.name

    def numbers(self) -> dict[str, float]:
        """Title → number. A plain title such as KID means FID's own network and weights; others name the network."""
        at = "" if self.is_fid else f" on {self.name}"
        kid = None if self.kernel_distance is None else self.kernel_distance.mean
        score = None if self.inception_score is None else self.inception_score.mean
        titled = {
            self.name: self.distance,
            f"Fréchet distance{at}" if at else self.kind: self.frechet_distance,
            f"KID{at}": kid,
            "Inception Score": score,
        }
        return {title: number for title, number in titled.items() if number is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without numbers that this network does not provide."""
        numbers = {"distance": self.distance, "frechet_distance": self.frechet_distance}
        kid, score = self.kernel_distance, self.inception_score
        if kid is not None:
            numbers |= {"kid": kid.mean, "kid_std": kid.std}
        if score is not None:
            numbers |= {"inception_score": score.mean, "inception_score_std": score.std}
        told = {key: value for key, value in numbers.items() if value is not None}
        how = {} if kid is None else {"kid_subsets": kid.subsets, "kid_subset_size": kid.subset_size}
        return {"name": self.name, "weights_sha256": self.weights_sha256, **told, **how}


class Originals:
    """The original or reference images: their number, pixels, hash and feature statistics.

    With a folder for statistics, statistics of an earlier evaluation are used again. After the last image, the hash of
    the pixels is compared with the hash in the statistics.
    """

    def __init__(self, judges: Judges, protocol: Protocol, folder: Path | None = None, kind: Kind = "rFID") -> None:
        """Look for statistics from an earlier evaluation.

        Args:
            judges: the metric networks; those for sets compute features of the images.
            protocol: preparation of the images.
            folder: folder of the statistics.
            kind: the metric that the images are a reference for.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: a statistics file of another kind, network or protocol, or a damaged one.
        """
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"statistics: no folder {folder}")
        self.protocol, self.kind = protocol, kind
        self.images = self.pixels = 0
        self._hash = PixelHash()
        self._paths = {network.name: _statistics_path(folder, network) for network in judges.sets if folder}
        self._known = {
            network.name: known_statistics(self._paths[network.name], kind, network, protocol)
            for network in judges.sets
            if network.name in self._paths and self._paths[network.name].exists()
        }
        self._features = [FeatureAccumulator(each) for each in judges.sets if each.name not in self._known]

    def update(self, image: UInt8[Tensor, "b c h w"]) -> None:
        """Add a batch of prepared images (B, C, H, W)."""
        self.images += image.shape[0]
        self.pixels += image.shape[0] * math.prod(image.shape[2:])
        self._hash.update(image)
        for accumulator in self._features:
            accumulator.update(accumulator.network.features(to_float(image)))

    def left_out(self, judges: Judges) -> dict[str, str]:
        """Metric that needs more images → reason."""
        if self.images > 1:
            return {}
        return {f"Fréchet distance and KID on {network.name}": "they need at least 2 images" for network in judges.sets}

    @property
    def sha256(self) -> str:
        """Hash of all pixels so far."""
        return self._hash.compute()

    def statistics(self) -> dict[str, FeatureStatistics]:
        """Network → statistics of all images; new ones are written to the folder.

        Raises:
            ValueError: the statistics in the folder belong to other images.
        """
        sha256 = self.sha256
        for name, known in self._known.items():
            if known.images_sha256 != sha256:
                raise ValueError(
                    f"statistics: {self._paths[name]} is of other images: got hash {known.images_sha256[:12]}…, "
                    f"expected {sha256[:12]}…"
                )
        statistics = {name: known.statistics for name, known in self._known.items()}
        for accumulator in self._features:
            name = accumulator.network.name
            statistics[name] = accumulator.compute()
            if name in self._paths:
                fresh = ReferenceStatistics(self.kind, statistics[name], self.protocol.to_dict(), sha256)
                write_statistics(self._paths[name], fresh)
        return statistics


class Pictures:
    """Reconstructions of a set of images, by a tokenizer or a codec: `update` with batches, then results."""

    def __init__(self, judges: Judges) -> None:
        self.quality = ImageQuality()
        self._pairs = judges.pairs
        self._distances: list[list[float]] = [[] for _ in judges.pairs]
        self._sets = [FeatureAccumulator(network) for network in judges.sets]

    def update(self, reconstruction: Float[Tensor, "b c h w"], image: UInt8[Tensor, "b c h w"]) -> None:
        """Add a batch: reconstructions (B, C, H, W) in [-1, 1], and their originals. Rounds reconstructions to uint8.

        Raises:
            ValueError: a reconstruction that is not finite.
        """
        self.quality.update(reconstruction, image)
        rounded, pixels = to_float(to_uint8(reconstruction)), to_float(image)
        with torch.no_grad():
            for judge, distances in zip(self._pairs, self._distances, strict=True):
                distances += judge.distances(rounded, pixels).tolist()
        for accumulator in self._sets:
            accumulator.update(accumulator.network.features(rounded))

    def judgments(self, originals: dict[str, FeatureStatistics]) -> tuple[Judgment, ...]:
        """The result of each network, given the originals' statistics. Networks for sets need at least 2 images."""
        said = [
            Judgment(judge.name, judge.weights_sha256, distance=math.fsum(distances) / len(distances))
            for judge, distances in zip(self._pairs, self._distances, strict=True)
        ]
        for accumulator in self._sets:
            ours = accumulator.compute()
            if ours.count > 1:
                said.append(compared(ours, originals[ours.network]))
        return tuple(said)


def compared(ours: FeatureStatistics, theirs: FeatureStatistics) -> Judgment:
    """The result of a network for sets, from the statistics, with features, of at least 2 images and of a reference."""
    assert ours.features is not None
    kid = None if theirs.features is None else kernel_distance(theirs.features, ours.features)
    return Judgment(ours.network, ours.weights_sha256, None, frechet_distance(theirs, ours), kid)


class Measurement:
    """One tokenizer on a set of images: image quality, tokens, codebook usage, time."""

    def __init__(self, tokenizer: Tokenizer, judges: Judges) -> None:
        self.tokenizer = tokenizer
        self.pictures = Pictures(judges)
        self.encode_seconds = self.decode_seconds = 0.0
        self._usage: CodeUsage | None = None

    def update(self, image: UInt8[Tensor, "b c h w"]) -> tuple[Tokens, Float32[Tensor, "b c h w"]]:
        """Encode, decode and measure a batch; returns its tokens and its reconstructions in [-1, 1]."""
        pixels = to_float(image)
        begun = _now(image.device)
        tokens = self.tokenizer.encode(pixels)
        between = _now(image.device)
        reconstruction = self.tokenizer.decode(tokens)
        self.decode_seconds += _now(image.device) - between
        self.encode_seconds += between - begun
        self.pictures.update(reconstruction, image)
        self._usage = self._usage or CodeUsage(self.tokenizer.vocab_size, num_scales=len(tokens.grids))
        self._usage.update([scale.long() for scale in tokens.indices])
        return tokens, reconstruction

    def usage(self) -> CodeUsageResult:
        """Usage of the codebook over all batches; needs at least one batch."""
        assert self._usage is not None, "ordered_batches raises where no image can be read"
        return self._usage.compute()


def stored_bits(usage: CodeUsageResult) -> int:
    """Tokens * ceil(log2 K): the bits of packed tokens in a token file."""
    return usage.total.tokens * bits_per_index(usage.vocab_size)


def entropy_bits(usage: CodeUsageResult) -> float:
    """The bits of all tokens with an ideal order-0 coder per scale, given the frequencies."""
    return math.fsum(scale.tokens * scale.entropy_bits for scale in usage.scales)


def warnings_about(images: int, judgments: tuple[Judgment, ...]) -> tuple[str, ...]:
    """Warnings about the numbers, one sentence each."""
    names = [
        each.kind if each.is_fid else f"the Fréchet distance on {each.name}"
        for each in judgments
        if each.frechet_distance is not None
    ]
    if not names or images >= SMALL_SET:
        return ()
    return (
        f"{images} images: below {SMALL_SET} {' and '.join(names)} is biased upwards by an amount that depends on the "
        "number of images; compare it only at equal numbers of images, or use KID",
    )


def warnings_about_quality(run: str, quality: Mapping[str, Any]) -> tuple[str, ...]:
    """A warning if the PSNR is below that of one mean colour per image."""
    found, baseline = quality["psnr"], quality["psnr_mean_color"]
    if found is None or baseline is None or found >= baseline:
        return ()
    return (
        f"{run}: PSNR {found:.2f} dB is below the {baseline:.2f} dB of one mean colour per image: it has learnt too "
        "little, or other images",
    )


def usage_to_dict(usage: CodeUsageResult) -> dict[str, Any]:
    """Usage over all scales and per scale, in plain JSON types."""
    scales = [
        {"scale": k, "largest_grid": list(grid), **asdict(statistics)}
        for k, (grid, statistics) in enumerate(zip(usage.grids, usage.scales, strict=True))
    ]
    return {"vocab_size": usage.vocab_size, "codes": asdict(usage.total), "scales": scales}


def _now(device: torch.device) -> float:
    """Time in seconds, after the device has finished all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _statistics_path(folder: Path, network: FeatureExtractor) -> Path:
    plain = "".join(letter if letter.isalnum() else "-" for letter in network.name.lower())
    return folder / f"{plain}-{network.weights_sha256[:8]}.safetensors"


def known_statistics(path: Path, kind: Kind, network: FeatureExtractor, protocol: Protocol) -> ReferenceStatistics:
    """Statistics from an earlier evaluation.

    Raises:
        ValueError: statistics of another kind, network or protocol.
    """
    known = read_statistics(path, kind)
    if (known.statistics.network, known.statistics.weights_sha256) != (network.name, network.weights_sha256):
        raise ValueError(f"statistics: {path} is of {known.statistics.network}, expected {network.name}")
    if known.protocol != protocol.to_dict():
        raise ValueError(f"statistics: {path} was taken with {known.protocol}, expected {protocol.to_dict()}")
    return known
