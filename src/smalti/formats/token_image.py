"""The tokens of one image, with all that a token file has to know of it."""

import unicodedata
from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Int64

from smalti.formats.token_codec import Grids

__all__ = ["TokenImage", "check_number"]


@dataclass(frozen=True, eq=False)
class TokenImage:
    """The tokens of one image.

    Raises:
        ValueError: a field that the file cannot hold, or that does not agree with the others.
    """

    name: str
    """What the image is called: a relative path such as "cats/tabby.png"; no "..", no control characters."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    channels: int
    """Channels of the image: 3 for RGB, 1 for grey."""
    grids: Grids
    """Shape of each scale, coarse to fine, of any rank: ((16, 16),), or ((1, 1), (2, 2), (4, 4))."""
    indices: Int64[np.ndarray, " l"]
    """int64 (L,): the indices of all scales, coarse to fine, each in raster order; L = the sum of the grids' sizes."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        check_number("image_size", min(self.image_size), max(self.image_size), 1, 2**32 - 1)
        check_number("channels", self.channels, self.channels, 1, 2**16 - 1)
        check_grids(self.grids)
        if self.indices.dtype != np.int64 or self.indices.shape != (self.num_tokens,):
            got = f"{self.indices.dtype} {self.indices.shape}"
            raise ValueError(f"indices: got {got}, the grids {self.grids} have int64 ({self.num_tokens},)")

    @property
    def num_tokens(self) -> int:
        """L, the indices of all scales together."""
        return sum(prod(grid) for grid in self.grids)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TokenImage)
            and (self.name, self.image_size, self.channels, self.grids)
            == (other.name, other.image_size, other.channels, other.grids)
            and np.array_equal(self.indices, other.indices)
        )


def check_number(name: str, low: int, high: int, least: int, most: int) -> None:
    """Refuse what a field of the file cannot hold."""
    for value in (low, high):
        if not least <= value <= most:
            raise ValueError(f"{name}: got {value}, allowed are {least} to {most}")


def check_grids(grids: Grids) -> None:
    """Refuse grids that no image has. Readers call it first: a side of 0 beside a huge one declares no index, and yet
    as many codes per position as it says."""
    check_number("grids: number of scales", len(grids), len(grids), 1, 255)
    for grid in grids:
        check_number("grids: rank", len(grid), len(grid), 0, 255)
        check_number("grids: side", min(grid, default=1), max(grid, default=1), 1, 2**32 - 1)


def _check_name(name: str) -> None:
    """A name ends up in a terminal and in a path, and may come from anywhere."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ValueError(f"name: got {name!r}, control characters are not allowed")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"name: got {name!r}, expected a relative path without empty parts, '.' and '..'")
    if len(name.encode("utf-8")) > 2**16 - 1:
        raise ValueError(f"name: got {len(name)} characters, at most 65535 bytes of UTF-8 fit")
