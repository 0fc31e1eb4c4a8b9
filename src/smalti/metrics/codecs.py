"""JPEG, WebP, AVIF and JPEG XL, which every tokenizer competes with: at a quality, and at the price of a token file.

The price is met by the quality whose file is nearest in bytes, found by bisection. A file of a codec has a smallest
size (JPEG's tables alone take some 600 bytes), so where tokens are cheaper than that, the codec pays more than it was
asked to; the bytes that are reported say so.
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
"""What people call them."""

OPTIONS: dict[Codec, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "optimize": True, "subsampling": "4:2:0"},
    "webp": {"format": "WEBP", "method": 4},
    "avif": {"format": "AVIF", "speed": 4},
    "jxl": {"format": "JXL", "effort": 7},
}
"""How Pillow is called: by its defaults, with JPEG's Huffman tables fitted to the picture, and AVIF slower."""

QUALITIES: dict[Codec, tuple[int, int]] = {"jpeg": (1, 95), "webp": (0, 100), "avif": (0, 100), "jxl": (0, 99)}
"""Lowest and highest quality; Pillow advises against JPEG above 95, and JPEG XL is lossless at 100."""

CURVES: dict[Codec, tuple[int, ...]] = {
    "jpeg": (5, 10, 20, 35, 50),
    "webp": (0, 5, 12, 25, 40),
    "avif": (5, 12, 20, 30, 40),
    "jxl": (1, 10, 20, 35, 50),
}
"""Qualities for a curve of quality over bytes, at the few tenths of a bit per pixel where tokens are."""


@dataclass(frozen=True, eq=False)
class CodedImage:
    """A picture that went through a codec."""

    num_bytes: int
    """Size of the file."""
    quality: int
    """The codec's own number."""
    image: UInt8[Tensor, "c h w"]
    """What the file decodes to."""


def require_codec(codec: Codec) -> None:
    """Make sure that Pillow can write and read the codec's files.

    Raises:
        ValueError: it cannot; the message says what to install.
    """
    if codec == "avif" and not features.check("avif"):
        raise ValueError("codecs: got avif, but this Pillow was built without it: pip install pillow")
    if codec == "jxl":
        try:
            import pillow_jxl  # noqa: F401  # it registers itself with Pillow
        except ImportError as error:
            raise ValueError("codecs: got jxl, but its plugin is missing: pip install pillow-jxl-plugin") from error


def code_at(image: UInt8[Tensor, "c h w"], codec: Codec, quality: int) -> CodedImage:
    """Code a picture (C, H, W), C = 1 or 3, at a quality on the codec's own scale."""
    data = _encode(_picture(image), codec, quality)
    return CodedImage(len(data), quality, _decode(data, len(image)))


def code_near(image: UInt8[Tensor, "c h w"], codec: Codec, num_bytes: int) -> CodedImage:
    """Code a picture (C, H, W), C = 1 or 3, at the quality whose file is nearest to `num_bytes`.

    Of two that are equally near, the smaller file is taken. File sizes are taken to grow with quality, as they do but
    for a few bytes.
    """
    picture = _picture(image)
    files: dict[int, bytes] = {}
    low, high = QUALITIES[codec]
    while low <= high:
        quality = (low + high) // 2
        files[quality] = _encode(picture, codec, quality)
        if len(files[quality]) < num_bytes:
            low = quality + 1
        else:
            high = quality - 1
    quality = min(files, key=lambda q: (abs(len(files[q]) - num_bytes), len(files[q])))
    return CodedImage(len(files[quality]), quality, _decode(files[quality], len(image)))


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
