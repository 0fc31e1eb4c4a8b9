"""Resizes and crops a picture of any size for training or evaluation.

The picture is resized with its aspect ratio kept, so that it just covers the crop (times a random zoom in training).
Then the crop is cut out. As in VAR (Tian et al. 2024), the filter is Pillow's LANCZOS, which is antialiased; smaller
pictures are enlarged by the same filter. Only pixels inside the crop are computed, so a picture that is one pixel wide
needs no huge intermediate image.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from smalti.checks import one_of
from smalti.data.source import to_array

TRAINING_REDUCING_GAP = 3.0
"""Random crops that reduce a picture by more than about this factor are first averaged over blocks of pixels (Pillow's
`reducing_gap`), which is up to seven times faster and hardly visible. Center crops, used for evaluation, are not.
"""

JPEG_REDUCING_GAP = 2.0
"""A JPEG for a random crop may be decoded smaller, as long as its sides stay at least this many times the size needed
at the largest zoom. On photographs the PSNR to the exact crop is 56 dB or more.
"""

MOST_PIXELS = 2**16
"""Longest side of a crop; longer ones are a typing error and would not fit in memory."""


@dataclass(frozen=True)
class TransformConfig:
    """Preparation of a picture as a model's input."""

    size: int | tuple[int, int] | None = None
    """Side of the square crop, or (height, width). None: no resizing and no crop."""
    crop: Literal["random", "center"] = "center"
    """Position of the crop in the resized picture: random, or center."""
    zoom: float = 1.0
    """Maximum zoom before a random crop, drawn log-uniformly from 1 to this value. 1: the crop covers as much of the
    picture as possible; 4: down to a quarter of that in height and width."""
    flip: bool = False
    """Mirror left and right with probability 0.5."""

    def __post_init__(self) -> None:
        if self.size is not None and not all(1 <= side <= MOST_PIXELS for side in self.height_width):
            raise ValueError(f"size: got {self.size}, expected sides of 1 to {MOST_PIXELS} pixels")
        one_of(("random", "center"), crop=self.crop)
        if not 1.0 <= self.zoom < math.inf:
            raise ValueError(f"zoom: got {self.zoom}, expected a finite number of at least 1")
        if self.zoom > 1.0 and (self.crop == "center" or self.size is None):
            raise ValueError(f"zoom: got {self.zoom}, expected 1 unless crop is random and a size is given")

    @property
    def height_width(self) -> tuple[int, int]:
        """The crop as (height, width). Requires a size."""
        if self.size is None:
            raise ValueError("size: got none, expected a size for a common height and width")
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def is_random(self) -> bool:
        """Whether `apply` draws random numbers."""
        return self.crop == "random" or self.flip

    @property
    def enough(self) -> int | None:
        """Side length above which `apply` hardly improves; None if the full resolution is needed."""
        if self.crop == "center" or self.size is None:
            return None
        return math.ceil(JPEG_REDUCING_GAP * self.zoom * max(self.height_width))

    def centered(self) -> "TransformConfig":
        """The same size without randomness: center crop, no zoom, no flip."""
        return TransformConfig(size=self.size)

    def apply(
        self, image: UInt8[np.ndarray, "h w c"] | Image.Image, generator: np.random.Generator | None = None
    ) -> UInt8[Tensor, "c height width"]:
        """Resize, crop and flip one picture.

        Args:
            image: uint8 (H, W, C) with C = 1 or 3, any H, W >= 1; or a Pillow image of mode L or RGB.
            generator: random generator, needed if `is_random`. Four numbers are always drawn, so that switching one
                augmentation off does not change the others.

        Returns:
            A contiguous uint8 tensor (C, height, width), the only owner of its memory.
        """
        if generator is None and self.is_random:
            raise ValueError("generator: got none, expected one for a random transform (crop random or flip)")
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
    """Resize `image` to cover `crop` (height, width) times `zoom`, and cut out the crop at `place`.

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
