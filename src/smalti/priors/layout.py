"""Token layout, the only data about a tokenizer that a prior has: tokens per image, grids and vocabulary size.

A prior uses no images, encoder or decoder. It is trained on one layout and refuses tokens of other layouts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Int64
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
        """Mask (L,) of tokens that overlap the box (top, left, bottom, right), given in fractions of the image."""
        top, left, bottom, right = box
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
            raise ValueError(f"box: got {box}, expected 0 <= top < bottom <= 1 and 0 <= left < right <= 1")
        parts = []
        for grid in self.grids:
            rows = torch.arange(grid[0]) / grid[0], torch.arange(1, grid[0] + 1) / grid[0]
            columns = torch.arange(grid[1]) / grid[1], torch.arange(1, grid[1] + 1) / grid[1]
            hit_h = (rows[0] < bottom) & (rows[1] > top)
            hit_w = (columns[0] < right) & (columns[1] > left)
            hit = hit_h[:, None] & hit_w[None, :]
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
