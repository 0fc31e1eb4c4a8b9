"""FSQ: round each component to one of a few levels; the codebook is the grid of all combinations and never exists.

Source: Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple" (arXiv 2309.15505), appendix A.

Nothing is learned here and no loss is needed: the encoder learns to use the grid. `lookup_free.py` is the same idea
with two levels, an unbounded latent and an entropy loss instead of the bound.
"""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.quantizers.rows import RowQuantizer, Rows


@final
class FiniteScalarQuantizer(RowQuantizer):
    """Rounding to `levels[d]` values in component d; no loss.

    >>> fsq = FiniteScalarQuantizer(levels=[8, 5, 5, 5])  # 1000 codes of dimension 4
    >>> quantized, loss, indices = fsq(torch.randn(1, 4, 8, 8))  # (1, 4, 8, 8), 0, (1, 8, 8)
    """

    basis: Int64[Tensor, " d"]
    """What a step of each component adds to the index: 1, levels[0], levels[0] * levels[1], …"""
    half_width: Float[Tensor, " d"]
    """levels // 2: codes are whole numbers divided by it, so that they lie in [-1, 1]."""
    top_digit: Int64[Tensor, " d"]
    """levels - 1: digits of the index go from 0 to it."""

    def __init__(self, levels: Sequence[int]):
        """
        Args:
            levels: number of values of each component, at least 2 each. Their count is `embedding_dim`, their product
                `num_embeddings`. The paper suggests [8, 5, 5, 5] for about 2^10 codes, [7, 5, 5, 5, 5] for 2^12,
                [8, 8, 8, 5, 5, 5] for 2^16, and never fewer than 5: with 2, z must fall below -3.8 to leave its level
                (`lookup_free.py` is made for that).
        """
        super().__init__()
        levels = [int(level) for level in levels]
        if not levels or min(levels) < 2:
            raise ValueError(f"levels: got {levels}, expected at least one, each at least 2")
        if math.prod(levels) > 2**62:
            raise ValueError(f"levels: got {levels}, whose product does not fit an int64 index")
        self.levels, self.embedding_dim, self.num_embeddings = levels, len(levels), math.prod(levels)
        basis = [math.prod(levels[:d]) for d in range(len(levels))]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)
        self.register_buffer("half_width", torch.tensor([level // 2 for level in levels]).float(), persistent=False)
        self.register_buffer("top_digit", torch.tensor(levels) - 1, persistent=False)

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Bound each component with a tanh, so that rounding yields exactly `levels` values.

        An even number of levels has no middle: the values are shifted by half a step, and the tanh with them, so that
        0 stays 0. The range reaches a thousandth beyond the outer levels. (The paper's listing stops as much short of
        them and undoes the shift with tan for atanh, which its author calls a mistake; the codes are the same.)
        """
        top_D = self.top_digit.float()
        half_range_D = top_D * (1 + 1e-3) / 2
        offset_D = torch.where(top_D % 2 == 1, 0.5, 0.0)
        bounded_ND = torch.tanh(z_ND + torch.atanh(offset_D / half_range_D)) * half_range_D - offset_D
        return bounded_ND / self.half_width

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """Round to the nearest level of each component, and number the combination."""
        digits_ND = (u_ND.detach() * self.half_width).round() + self.half_width
        digits_ND = digits_ND.clamp(min=0).long().minimum(self.top_digit)
        return (digits_ND * self.basis).sum(dim=1)

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """The digits of the index, as values in [-1, 1]."""
        digits_ND = indices_N.unsqueeze(1) // self.basis % (self.top_digit + 1)
        return (digits_ND - self.half_width) / self.half_width

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> Rows:
        """Round; there is no loss."""
        indices_N = self.search(u_ND)
        return Rows(indices_N, self.lookup(indices_N), {})

    def weights(self) -> dict[str, float]:
        """No terms."""
        return {}

    def residual_scale(self) -> list[float]:
        """So that the next grid reaches half a step of this one on both sides; an even one reaches less far up."""
        return [1 / (level - 1 + level % 2) for level in self.levels]

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`."""
        return {"type": type(self).__name__, "levels": self.levels}
