"""The tokens of one image, with all fields that a token file stores."""

import unicodedata
from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Int64

from smalti.formats.token_codec import Grids


@dataclass(frozen=True, eq=False)
class TokenImage:
    """The tokens of one image.

    Raises:
        ValueError: the file format cannot represent a field's value, or fields contradict each other.
    """

    name: str
    """Name of the image: a relative path such as "cats/tabby.png", without ".." and control characters."""
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
            raise ValueError(f"indices: got {got}, expected int64 ({self.num_tokens},) for the grids {self.grids}")

    @property
    def num_tokens(self) -> int:
        """L, the number of indices in all scales."""
        return sum(prod(grid) for grid in self.grids)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TokenImage)
            and (self.name, self.image_size, self.channels, self.grids)
            == (other.name, other.image_size, other.channels, other.grids)
            and np.array_equal(self.indices, other.indices)
        )


def check_number(name: str, low: int, high: int, least: int, most: int) -> None:
    """Refuse values that a field of the file cannot represent."""
    for value in (low, high):
        if not least <= value <= most:
            raise ValueError(f"{name}: got {value}, expected {least} to {most}")


def check_grids(grids: Grids) -> None:
    """Refuse impossible grids. Readers call it before anything else: with a side of 0 and a huge side, a grid declares
    no index but a huge number of codes per position."""
    check_number("grids: number of scales", len(grids), len(grids), 1, 255)
    for grid in grids:
        check_number("grids: rank", len(grid), len(grid), 0, 255)
        check_number("grids: side", min(grid, default=1), max(grid, default=1), 1, 2**32 - 1)


def _check_name(name: str) -> None:
    """Refuse unsafe names. Names are printed and used as paths, and may come from an untrusted file."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ValueError(f"name: got {name!r}, expected no control characters")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"name: got {name!r}, expected a relative path without empty parts, '.' or '..'")
    if len(name.encode("utf-8")) > 2**16 - 1:
        raise ValueError(f"name: got {len(name)} characters, expected at most 65535 bytes of UTF-8")
