"""JPEG, WebP, AVIF and JPEG XL as baselines for tokenizers: at a given quality, or at the size of a token file.

For a given size, bisection finds the quality whose file size is nearest. Each codec has a minimum file size (JPEG's
tables alone take about 600 bytes). If the tokens take fewer bytes, the codec's file is that of its lowest quality,
larger than requested, and the result says so.
"""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, features
from torch import Tensor

Codec = Literal["jpeg", "webp", "avif", "jxl"]

TITLES: dict[Codec, str] = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "jxl": "JPEG XL"}
"""Display names."""

OPTIONS: dict[Codec, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "optimize": True, "subsampling": "4:2:0"},
    "webp": {"format": "WEBP", "method": 4},
    "avif": {"format": "AVIF", "speed": 4},
    "jxl": {"format": "JXL", "effort": 7},
}
"""Pillow's options: defaults, except optimized Huffman tables for JPEG and a slower speed for AVIF."""

QUALITIES: dict[Codec, tuple[int, int]] = {"jpeg": (1, 95), "webp": (0, 100), "avif": (0, 100), "jxl": (0, 99)}
"""Lowest and highest quality; Pillow advises against JPEG above 95, and JPEG XL is lossless at 100."""

CURVES: dict[Codec, tuple[int, ...]] = {
    "jpeg": (5, 10, 20, 35, 50),
    "webp": (0, 5, 12, 25, 40),
    "avif": (5, 12, 20, 30, 40),
    "jxl": (1, 10, 20, 35, 50),
}
"""Qualities for a rate-distortion curve at a few tenths of a bit per pixel, the range of token files."""


@dataclass(frozen=True, eq=False)
class CodedImage:
    """An image encoded and decoded by a codec."""

    num_bytes: int
    """Size of the file in bytes."""
    quality: int
    """Quality on the codec's own scale."""
    image: UInt8[Tensor, "c h w"]
    """The decoded image."""
    too_large: bool = False
    """Whether even the lowest quality, which this is, gives a larger file than requested."""


def require_codec(codec: Codec) -> None:
    """Check that Pillow can write and read the codec's files.

    Raises:
        ValueError: it cannot. The message names the package to install.
    """
    if codec == "avif" and not features.check("avif"):
        raise ValueError("codecs: got avif, but this Pillow was built without AVIF: pip install pillow")
    if codec == "jxl":
        try:
            import pillow_jxl  # noqa: F401  # registers itself with Pillow
        except ImportError as error:
            raise ValueError(
                "codecs: got jxl, but its plugin is not installed: pip install pillow-jxl-plugin"
            ) from error


def code_at(image: UInt8[Tensor, "c h w"], codec: Codec, quality: int) -> CodedImage:
    """Encode and decode an image (C, H, W), C = 1 or 3, at a quality on the codec's own scale."""
    data = _encode(_picture(image), codec, quality)
    return CodedImage(len(data), quality, _decode(data, len(image)))


def code_near(image: UInt8[Tensor, "c h w"], codec: Codec, num_bytes: int) -> CodedImage:
    """Encode and decode an image (C, H, W), C = 1 or 3, at the quality whose file size is nearest to `num_bytes`.

    Of two equally near sizes the smaller is taken. The search assumes that file size grows with quality, which holds up
    to a few bytes. If no quality gives so small a file, the lowest is taken.
    """
    picture = _picture(image)
    files: dict[int, bytes] = {}
    low, high = QUALITIES[codec]
    lowest = low
    while low <= high:
        quality = (low + high) // 2
        files[quality] = _encode(picture, codec, quality)
        if len(files[quality]) < num_bytes:
            low = quality + 1
        else:
            high = quality - 1
    too_large = min(map(len, files.values())) > num_bytes
    quality = lowest if too_large else min(files, key=lambda q: (abs(len(files[q]) - num_bytes), len(files[q])))
    return CodedImage(len(files[quality]), quality, _decode(files[quality], len(image)), too_large)


def _picture(image: UInt8[Tensor, "c h w"]) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy() if len(image) == 3 else image[0].numpy())


def _encode(picture: Image.Image, codec: Codec, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, quality=quality, **OPTIONS[codec])
    return buffer.getvalue()


def _decode(data: bytes, channels: int) -> UInt8[Tensor, "c h w"]:
    with Image.open(io.BytesIO(data)) as picture:
        pixels = np.asarray(picture.convert("RGB" if channels == 3 else "L"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1).copy())
