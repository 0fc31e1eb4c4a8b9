"""Compares several tokenizers, and image codecs at the same file sizes, on the same images.

All are measured on the same prepared pixels by the same metric networks; a network with which one of the tokenizers was
trained is left out. In addition to estimated bits, the rows have real bytes: the size of the token file that `smalti
encode` writes for each single image.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from smalti.codec import chosen_coding
from smalti.data import image_names
from smalti.evaluation.inputs import MeasureConfig
from smalti.evaluation.judges import Judges
from smalti.evaluation.measurement import (
    Judgment,
    Measurement,
    Originals,
    Pictures,
    entropy_bits,
    stored_bits,
    usage_to_dict,
)
from smalti.formats import TokenFile
from smalti.metrics import (
    CURVES,
    TITLES,
    Codec,
    CodedImage,
    CodeUsageResult,
    FeatureStatistics,
    Protocol,
    code_at,
    code_near,
)
from smalti.ops.pixels import to_float, to_uint8
from smalti.tokenizers import Tokenizer, Tokens, to_token_image


@dataclass(frozen=True)
class TokenizerCosts:
    """Numbers that only a tokenizer has."""

    fingerprint: str
    """Fingerprint of the tokenizer."""
    parameters: int
    """Number of parameters."""
    tokens_per_image: float
    """Mean number of tokens per image."""
    bits_per_pixel: float
    """Tokens * ceil(log2 K) / pixels."""
    entropy_bits_per_pixel: float
    """Bits per pixel with each scale's entropy instead of ceil(log2 K): an estimate for an ideal coder."""
    usage: CodeUsageResult
    """Usage, perplexity and entropy, per scale and over all scales."""
    encode_images_per_second: float
    """Speed of `encode`, after one warm-up batch."""
    decode_images_per_second: float
    """Speed of `decode`, after one warm-up batch."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**self.__dict__, "usage": self.usage.total.usage, **usage_to_dict(self.usage)}


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    name: str
    """The tokenizer as named in the config; or the codec with the tokenizer whose file sizes it has, or with its lowest
    quality and the bytes per image where that is larger."""
    quality: dict[str, float | int | None]
    """PSNR, SSIM and their numbers of images."""
    judgments: tuple[Judgment, ...]
    """Results of the metric networks."""
    file_bytes: float
    """Mean file size per image."""
    file_bits_per_pixel: float
    """Bits of all files, divided by the number of all pixels."""
    costs: TokenizerCosts | None
    """Numbers of the tokenizer; None for a codec."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.name,
            **self.quality,
            "judges": [judgment.to_dict() for judgment in self.judgments],
            "file_bytes": self.file_bytes,
            "file_bits_per_pixel": self.file_bits_per_pixel,
            **({} if self.costs is None else self.costs.to_dict()),
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """The whole table, and the pictures."""

    data: str
    """The images, as named in the config."""
    protocol: Protocol
    """How the images were prepared."""
    images: int
    """Number of measured images."""
    images_sha256: str
    """Hash of the prepared pixels."""
    rows: tuple[Row, ...]
    """Tokenizers in the order given, then the codecs at their file sizes."""
    curves: dict[Codec, tuple[Row, ...]]
    """Codec → its rows at rising quality; empty if no curves were requested."""
    left_out: dict[str, str]
    """Metric → reason why it was not computed."""
    warnings: tuple[str, ...]
    """Warnings about the numbers."""
    unreadable: dict[str, str]
    """File → reason why it could not be decoded."""
    machine: dict[str, Any]
    """Device, threads and batch size, on which the speeds depend."""
    config: MeasureConfig
    """The settings, with the size that was used."""
    picture: UInt8[Tensor, "3 height width"]
    """The originals, below them one row per line of the table."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the picture; the keys are stable within one value of `version`."""
        return {
            "version": 1,
            "smalti": version("smalti"),
            "data": self.data,
            "images": self.images,
            "images_sha256": self.images_sha256,
            "protocol": self.protocol.to_dict(),
            "machine": self.machine,
            "rows": [row.to_dict() for row in self.rows],
            "curves": {codec: [row.to_dict() for row in rows] for codec, rows in self.curves.items()},
            "left_out": self.left_out,
            "warnings": list(self.warnings),
            "unreadable": self.unreadable,
        }


class Coded:
    """A codec on all images: at the file sizes of a tokenizer, or at one quality."""

    def __init__(self, codec: Codec, at: str, judges: Judges) -> None:
        self.codec, self.at = codec, at
        self.num_bytes: list[int] = []
        self.too_large = 0
        self.shown: list[Tensor] = []
        self._pictures = Pictures(judges)

    def update(self, image: UInt8[Tensor, "b c h w"], coded: list[CodedImage], show: int) -> None:
        """Add a batch (B, C, H, W) and its coded images; the first `show` of them appear in the picture."""
        decoded = torch.stack([each.image for each in coded]).to(image.device)
        self._pictures.update(to_float(decoded), image)
        self.num_bytes += [each.num_bytes for each in coded]
        self.too_large += sum(each.too_large for each in coded)
        self.shown += decoded[:show]

    @property
    def name(self) -> str:
        """What the row shows: a codec that cannot make so small a file is not at the bytes of the tokenizer."""
        images, size = len(self.num_bytes), f"{sum(self.num_bytes) / len(self.num_bytes):.0f} bytes per image"
        if not self.too_large:
            return f"{TITLES[self.codec]} at {self.at}"
        if self.too_large == images:
            return f"{TITLES[self.codec]} at its lowest quality, {size}"
        return f"{TITLES[self.codec]} at {self.at}, {self.too_large} of {images} images at its lowest quality, {size}"

    def row(self, originals: Originals, statistics: dict[str, FeatureStatistics]) -> Row:
        """The line of the table."""
        return Row(
            self.name,
            self._pictures.quality.compute(),
            self._pictures.judgments(statistics),
            sum(self.num_bytes) / originals.images,
            8 * sum(self.num_bytes) / originals.pixels,
            None,
        )


class Curves:
    """Codecs at the qualities of their curves."""

    def __init__(self, codecs: tuple[Codec, ...], judges: Judges) -> None:
        self._points = {
            codec: [(quality, Coded(codec, f"quality {quality}", judges)) for quality in CURVES[codec]]
            for codec in codecs
        }

    def update(self, image: UInt8[Tensor, "b c h w"]) -> None:
        """Add a batch (B, C, H, W)."""
        for codec, points in self._points.items():
            for quality, coded in points:
                coded.update(image, [code_at(each, codec, quality) for each in image.cpu()], 0)

    def rows(self, originals: Originals, statistics: dict[str, FeatureStatistics]) -> dict[Codec, tuple[Row, ...]]:
        """Codec → its rows at rising quality."""
        return {
            codec: tuple(coded.row(originals, statistics) for _, coded in points)
            for codec, points in self._points.items()
        }


class ComparedTokenizer:
    """One tokenizer in the comparison, and the codecs at its file sizes."""

    def __init__(self, run: str, tokenizer: Tokenizer, judges: Judges, codecs: tuple[Codec, ...]) -> None:
        self.name = run
        self.coded = [Coded(codec, f"the bytes of {run}", judges) for codec in codecs]
        self.shown: list[Tensor] = []
        self._measurement = Measurement(tokenizer, judges)
        self._fingerprint = tokenizer.fingerprint
        self._coding, self._codec = chosen_coding(run, "auto")
        self._bytes = 0

    def update(self, image: UInt8[Tensor, "b c h w"], keys: tuple[str, ...], show: int) -> None:
        """Add a batch (B, C, H, W) and the names of its images."""
        tokenizer = self._measurement.tokenizer
        if not self._bytes:
            tokenizer.decode(tokenizer.encode(image))  # warm-up: the first calls are slower and not timed
        tokens, reconstruction = self._measurement.update(image)
        self.shown += to_uint8(reconstruction[:show])
        num_bytes = [self._file_bytes(key, tokens[i]) for i, key in enumerate(keys)]
        self._bytes += sum(num_bytes)
        for coded in self.coded:
            files = [code_near(each, coded.codec, wanted) for each, wanted in zip(image.cpu(), num_bytes, strict=True)]
            coded.update(image, files, show)

    def _file_bytes(self, key: str, tokens: Tokens) -> int:
        """Size in bytes of a token file with this image alone, under the name that `smalti encode` gives it."""
        token_image = to_token_image(image_names([key])[0], tokens, self._measurement.tokenizer.image_channels)
        file = TokenFile(self._fingerprint, tokens.vocab_size, (token_image,), self._coding)
        return len(file.to_bytes(codec=self._codec))

    def row(self, originals: Originals, statistics: dict[str, FeatureStatistics]) -> Row:
        """The line of the table."""
        measurement, usage = self._measurement, self._measurement.usage()
        costs = TokenizerCosts(
            fingerprint=self._fingerprint,
            parameters=sum(parameter.numel() for parameter in measurement.tokenizer.parameters()),
            tokens_per_image=usage.total.tokens / originals.images,
            bits_per_pixel=stored_bits(usage) / originals.pixels,
            entropy_bits_per_pixel=entropy_bits(usage) / originals.pixels,
            usage=usage,
            encode_images_per_second=originals.images / measurement.encode_seconds,
            decode_images_per_second=originals.images / measurement.decode_seconds,
        )
        return Row(
            self.name,
            measurement.pictures.quality.compute(),
            measurement.pictures.judgments(statistics),
            self._bytes / originals.images,
            8 * self._bytes / originals.pixels,
            costs,
        )


def merged(compared: list[ComparedTokenizer]) -> list[Coded]:
    """Merge rows of a codec with equal files: several small token files may all lead to the codec's lowest quality."""
    merged: dict[tuple[Codec, int, tuple[int, ...]], Coded] = {}
    for each in compared:
        for coded in each.coded:
            first = merged.setdefault((coded.codec, coded.too_large, tuple(coded.num_bytes)), coded)
            if first is not coded:
                first.at += f", {each.name}"
    return list(merged.values())
