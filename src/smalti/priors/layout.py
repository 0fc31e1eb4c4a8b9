"""Token layout, the only data about a tokenizer that a prior has: tokens per image, grids and vocabulary size.

A prior uses no images, encoder or decoder. It is trained on one layout and refuses tokens of other layouts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from smalti.checks import at_least


@dataclass(frozen=True)
class TokenLayout:
    """The token grid of a tokenizer at one image size."""

    vocab_size: int
    """Tokens lie in [0, vocab_size)."""
    grids: tuple[tuple[int, ...], ...]
    """Shape of each scale, coarse to fine: ((1, 1), (2, 2), (4, 4)); one for a single scale; (h, w, Q) where Q codes
    make one position."""
    image_size: tuple[int, int]
    """Height and width in pixels of the images."""
    fingerprint: str = ""
    """Fingerprint of the tokenizer that made the tokens; "" if unknown."""

    def __post_init__(self) -> None:
        at_least(1, vocab_size=self.vocab_size)
        if not self.grids or any(len(grid) < 2 or min(grid) < 1 for grid in self.grids):
            raise ValueError(f"grids: got {self.grids}, expected one (h, w) or (h, w, Q) per scale, sides at least 1")

    @classmethod
    def of(
        cls, vocab_size: int, grids: Sequence[Sequence[int]], image_size: Sequence[int], fingerprint: str = ""
    ) -> "TokenLayout":
        """A layout from JSON lists."""
        height, width = image_size
        return cls(vocab_size, tuple(tuple(int(side) for side in grid) for grid in grids), (height, width), fingerprint)

    @classmethod
    def from_config(cls, config: "Mapping[str, Any] | TokenLayout") -> "TokenLayout":
        """A layout from the result of `config`, also after JSON."""
        return config if isinstance(config, TokenLayout) else cls.of(**config)

    @property
    def scale_lengths(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(prod(grid) for grid in self.grids)

    @property
    def num_tokens(self) -> int:
        """Tokens per image, L."""
        return sum(self.scale_lengths)

    @property
    def codes_per_position(self) -> int:
        """Q: residual levels or groups per position; 1 for plain quantizers."""
        return prod(self.grids[0][2:])

    @property
    def scale_positions(self) -> tuple[int, ...]:
        """Positions of each scale, with `codes_per_position` tokens each."""
        return tuple(length // self.codes_per_position for length in self.scale_lengths)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Start and end of each scale in the flat sequence."""
        return tuple(pairwise(accumulate(self.scale_lengths, initial=0)))

    def split(self, tokens_BL: Int64[Tensor, "b l"]) -> tuple[Int64[Tensor, "b ..."], ...]:
        """The flat sequence (B, L) as one map (B, *grid) per scale."""
        return tuple(
            tokens_BL[:, start:end].reshape(-1, *grid)
            for (start, end), grid in zip(self.spans, self.grids, strict=True)
        )

    def inside(self, box: tuple[float, float, float, float]) -> Bool[Tensor, " l"]:
        """Mask (L,) of tokens in the box (top, left, bottom, right), given in fractions of the image.

        A token of the finest scale is in the box if its cell overlaps it. A coarser token is in the box if at least
        half of its cell is: the others describe more of what lies outside.
        """
        top, left, bottom, right = box
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
            raise ValueError(f"box: got {box}, expected 0 <= top < bottom <= 1 and 0 <= left < right <= 1")
        parts = []
        for grid in self.grids:
            rows, columns = _covered(grid[0], top, bottom), _covered(grid[1], left, right)
            covered = rows[:, None] * columns[None, :]
            hit = covered > 0 if grid == self.grids[-1] else covered >= 0.5
            parts.append(hit.reshape(*hit.shape, *[1] * (len(grid) - 2)).expand(grid).reshape(-1))
        return torch.cat(parts)

    def require(self, other: "TokenLayout", what: str) -> None:
        """Refuse another layout.

        Raises:
            ValueError: names the difference: fingerprint, vocabulary size or scales.
        """
        if self.vocab_size != other.vocab_size:
            raise ValueError(f"{what}: got vocabulary size {other.vocab_size}, expected {self.vocab_size}")
        if self.grids != other.grids or self.image_size != other.image_size:
            raise ValueError(
                f"{what}: got scales {other.grids} for images of {other.image_size}, "
                f"expected {self.grids} for {self.image_size}"
            )
        if self.fingerprint and other.fingerprint and self.fingerprint != other.fingerprint:
            raise ValueError(
                f"{what}: got fingerprint {other.fingerprint[:12]}…, another tokenizer's, "
                f"expected {self.fingerprint[:12]}…"
            )

    def config(self) -> dict[str, Any]:
        """The layout in plain JSON types."""
        return {
            **asdict(self),
            "grids": [list(grid) for grid in self.grids],
            "image_size": list(self.image_size),
        }


def _covered(cells: int, start: float, end: float) -> Float[Tensor, " cells"]:
    """Fraction of each of the cells of a side that lies between start and end, in fractions of the side."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / cells
    return (edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)).clamp(min=0) * cells
