"""JPEG and WebP at the price of a token file: the quality whose file is nearest in bytes, found by bisection.

Every tokenizer competes with these. A file of either has a smallest size (JPEG's tables alone take some 600 bytes), so
where tokens are cheaper than that, the codec pays more than it was asked to; the bytes that are reported say so.
"""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

Codec = Literal["jpeg", "webp"]

OPTIONS: dict[Codec, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "optimize": True, "subsampling": "4:2:0"},
    "webp": {"format": "WEBP", "method": 4},
}
"""How Pillow is called: what people get by default, with JPEG's Huffman tables fitted to the picture."""

QUALITIES = {"jpeg": (1, 95), "webp": (0, 100)}
"""Lowest and highest quality; Pillow advises against JPEG above 95."""


@dataclass(frozen=True, eq=False)
class CodedImage:
    """A picture that went through a codec."""

    num_bytes: int
    """Size of the file."""
    quality: int
    """The codec's own number."""
    image: UInt8[Tensor, "c h w"]
    """What the file decodes to."""


def code_near(image: UInt8[Tensor, "c h w"], codec: Codec, num_bytes: int) -> CodedImage:
    """Code a picture (C, H, W), C = 1 or 3, at the quality whose file is nearest to `num_bytes`.

    Of two that are equally near, the smaller file is taken. File sizes are taken to grow with quality, as they do but
    for a few bytes.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).numpy() if len(image) == 3 else image[0].numpy())
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


def _encode(picture: Image.Image, codec: Codec, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, quality=quality, **OPTIONS[codec])
    return buffer.getvalue()


def _decode(data: bytes, channels: int) -> UInt8[Tensor, "c h w"]:
    with Image.open(io.BytesIO(data)) as picture:
        pixels = np.asarray(picture.convert("RGB" if channels == 3 else "L"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1).copy())
