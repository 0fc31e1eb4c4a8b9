"""Pixels for the browser: PNG as data URL, and the colour map of all heat maps.

The colour map runs from dark blue over green to yellow, with lightness growing steadily: it stays readable for
colour-blind people and in grey.
"""

import base64
import io

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

ANCHORS = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
"""Colours of viridis (van der Walt and Smith 2015, public domain) at equal distances; those between are linear."""


def colour_table() -> UInt8[np.ndarray, "256 3"]:
    """256 colours, dark to bright."""
    anchors = np.array([list(bytes.fromhex(anchor)) for anchor in ANCHORS], dtype=np.float64)
    places = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(places, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def heat_map(values: Float[Tensor, "h w"], top: float) -> UInt8[Tensor, "3 h w"]:
    """Values from 0 to `top` in colours; larger values have the colour of `top`."""
    levels = (values.clamp(0, top) * (255 / top)).round().to(torch.uint8).cpu().numpy()
    return torch.from_numpy(colour_table()[levels]).permute(2, 0, 1)


def png(image: UInt8[Tensor, "c h w"]) -> bytes:
    """A PNG file of a grey, RGB or RGBA image, packed quickly rather than tightly."""
    array = image.permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def data_url(image: UInt8[Tensor, "c h w"]) -> str:
    """The image as a PNG in a data URL, for the attribute `src` of an image."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def difference(a: UInt8[Tensor, "c h w"], b: UInt8[Tensor, "c h w"]) -> Float[Tensor, "h w"]:
    """Absolute difference of two images per pixel, mean over channels, in grey levels (0 to 255)."""
    return (a.float() - b.float()).abs().mean(dim=0)


def resized(image: Image.Image, longest: int) -> Image.Image:
    """The image, reduced so that its longer side has at most `longest` pixels."""
    factor = longest / max(image.size)
    if factor >= 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
