"""From a picture of any size to the crop that a model is trained or measured on.

The picture is first resized, keeping its proportions, so that it just covers the crop (times a random zoom in
training), and the crop is then cut from it. As in VAR (Tian et al. 2024) the filter is Pillow's LANCZOS, which widens
with the reduction and so does not alias; pictures smaller than the crop are enlarged by the same filter. Only the
pixels inside the crop are ever computed, so a picture one pixel wide does not become an enormous strip on the way.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from smalti.data.source import to_array

__all__ = ["TransformConfig"]

TRAINING_REDUCING_GAP = 3.0
"""Random crops that shrink a picture more than about this many times are first averaged over whole blocks of pixels,
which is up to seven times faster and hardly visible (Pillow's `reducing_gap`). Center crops, on which models are
measured, are not.
"""

JPEG_REDUCING_GAP = 2.0
"""Likewise, a JPEG may be decoded smaller as long as its sides stay this many times what the largest zoom of a random
crop needs: on photographs 56 dB or more from the exact crop.
"""

MOST_PIXELS = 2**16
"""Longest side of a crop; longer ones are a slip of the hand that no memory holds."""


@dataclass(frozen=True)
class TransformConfig:
    """How a picture becomes a model's input."""

    size: int | tuple[int, int] | None = None
    """Side of the square crop, or (height, width); none keeps every picture at its own size, uncropped."""
    crop: Literal["random", "center"] = "center"
    """Where the crop lies: anywhere the resized picture allows, or in its middle."""
    zoom: float = 1.0
    """Largest random enlargement before a random crop: with 1 a crop shows as much of the picture as its shape allows,
    with 4 it may show a quarter of that in height and width. Drawn log-uniformly between 1 and this."""
    flip: bool = False
    """Mirror left and right with probability one half."""

    def __post_init__(self) -> None:
        if self.size is not None and not all(1 <= side <= MOST_PIXELS for side in self.height_width):
            raise ValueError(f"size: got {self.size}, expected sides of 1 to {MOST_PIXELS} pixels")
        if self.crop not in ("random", "center"):
            raise ValueError(f"crop: {self.crop!r}, must be random or center")
        if not 1.0 <= self.zoom < math.inf:
            raise ValueError(f"zoom: {self.zoom}, must be finite and at least 1")
        if self.zoom > 1.0 and (self.crop == "center" or self.size is None):
            raise ValueError(f"zoom: {self.zoom}, must be 1 unless crop is random and a size is given")

    @property
    def height_width(self) -> tuple[int, int]:
        """The crop as (height, width). Only where there is a size."""
        if self.size is None:
            raise ValueError("size: none, so there is no common height and width")
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def is_random(self) -> bool:
        """Whether `apply` draws random numbers."""
        return self.crop == "random" or self.flip

    @property
    def enough(self) -> int | None:
        """A length of a picture's sides beyond which `apply` gains hardly anything; None where every pixel counts."""
        if self.crop == "center" or self.size is None:
            return None
        return math.ceil(JPEG_REDUCING_GAP * self.zoom * max(self.height_width))

    def centered(self) -> "TransformConfig":
        """The same size without anything random: the center crop, no zoom, no flip."""
        return TransformConfig(size=self.size)

    def apply(
        self, image: UInt8[np.ndarray, "h w c"] | Image.Image, generator: np.random.Generator | None = None
    ) -> UInt8[Tensor, "c height width"]:
        """Resize, crop and flip one picture.

        Args:
            image: uint8 (H, W, C) with C = 1 or 3, any H, W >= 1; or Pillow's image of mode L or RGB.
            generator: where randomness comes from; needed if `is_random`. Four numbers are drawn whatever the fields
                say, so that switching one kind of augmentation off leaves the others as they were.

        Returns:
            A contiguous uint8 tensor (C, height, width), the only owner of its memory.
        """
        if generator is None and self.is_random:
            raise ValueError("generator: none, but this transform is random (crop random or flip)")
        zoom, down, right, mirror = (0.0, 0.0, 0.0, 1.0) if generator is None else generator.random(4)
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        if self.size is not None:
            place = (down, right) if self.crop == "random" else None
            image, _ = cover_and_crop(image, self.height_width, self.zoom**zoom, place)
        array = to_array(image)
        if self.flip and mirror < 0.5:
            array = array[:, ::-1]
        return torch.from_numpy(array.transpose(2, 0, 1).copy())


def cover_and_crop(
    image: Image.Image, crop: tuple[int, int], zoom: float, place: tuple[float, float] | None
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Resize `image` to cover `crop` (height, width) times `zoom`, and cut the crop out at `place`.

    Args:
        image: mode L or RGB.
        crop: height and width of the result.
        zoom: at least 1.
        place: (down, right) in 0...1, from the upper left to the lower right; None is the middle.

    Returns:
        The crop, and its outline in the pixels of `image`: left, upper, right, lower.
    """
    width, height = image.size
    scale = zoom * max(crop[0] / height, crop[1] / width)
    tall = max(crop[0], round(height * scale))
    wide = max(crop[1], round(width * scale))
    if (tall, wide) == crop == (height, width):
        return image, (0.0, 0.0, float(width), float(height))
    top, left = (tall - crop[0]) // 2, (wide - crop[1]) // 2
    if place is not None:
        top, left = _offset(place[0], tall - crop[0]), _offset(place[1], wide - crop[1])
    box = (left * width / wide, top * height / tall, (left + crop[1]) * width / wide, (top + crop[0]) * height / tall)
    gap = None if place is None else TRAINING_REDUCING_GAP
    return image.resize((crop[1], crop[0]), Image.Resampling.LANCZOS, box, reducing_gap=gap), box


def _offset(place: float, room: int) -> int:
    """One of the room + 1 whole-pixel offsets 0...room, each equally likely for a uniform `place` in [0, 1)."""
    return min(int(place * (room + 1)), room)
