"""FSQ: round each component to one of a few levels; the codebook is the grid of all combinations and never exists.

Source: Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple" (arXiv 2309.15505), appendix A. The
symmetric grid is that of Parker et al. 2024, "Scaling Transformers for Low-Bitrate High-Quality Speech Coding" (arXiv
2411.19842).

Nothing is learned here and no loss is needed: the encoder learns to use the grid. `lookup_free.py` is the same idea
with two levels, an unbounded latent and an entropy loss instead of the bound.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.checks import between, expect
from smalti.quantizers.base import PointwiseQuantizer, QuantizedVectors
from smalti.quantizers.latents import constant


@final
class FiniteScalarQuantizer(PointwiseQuantizer):
    """Rounding to `levels[d]` values in component d; no loss.

    >>> fsq = FiniteScalarQuantizer(levels=[8, 5, 5, 5])  # 1000 codes of dimension 4
    >>> quantized, loss, indices = fsq(torch.randn(1, 4, 8, 8))  # (1, 4, 8, 8), 0, (1, 8, 8)
    """

    older_defaults: ClassVar = {"symmetric": False, "noise_dropout": 0.0}

    def __init__(self, levels: Sequence[int], *, symmetric: bool = False, noise_dropout: float = 0.0):
        """
        Args:
            levels: number of values of each component, at least 2 each. Their count is `embedding_dim`, their product
                `num_embeddings`. The paper suggests [8, 5, 5, 5] for about 2^10 codes, [7, 5, 5, 5, 5] for 2^12,
                [8, 8, 8, 5, 5, 5] for 2^16, and never fewer than 5: with 2, z must fall below -3.8 to leave its level
                (`lookup_free.py` is made for that).
            symmetric: put the values evenly from -1 to 1, also where their number is even. Then 0 is none of them, and
                2 levels are the signs. False: the paper's grid, in which half the outermost step is missing above.
            noise_dropout: probability, in training, that a component is not rounded but gets noise as wide as a step
                instead (Parker et al.), so that the decoder knows what lies between the values. Indices are the same.
        """
        super().__init__()
        between(0, 1, noise_dropout=noise_dropout)
        levels = [int(level) for level in levels]
        sizes = bool(levels) and min(levels) >= 2 and max(levels) <= 2**24
        expect(sizes, "levels", levels, "at least one, each from 2 to 2^24, which fp32 tells apart")
        expect(math.prod(levels) <= 2**62, "levels", levels, "a product of at most 2^62, which fits an int64 index")
        self.levels, self.symmetric, self.noise_dropout = levels, symmetric, noise_dropout
        self.embedding_dim, self.num_embeddings = len(levels), math.prod(levels)
        self.register_buffer("on_device", torch.empty(0), persistent=False)  # says which device

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Bound each component with a tanh, so that rounding yields exactly `levels` values.

        An even number of levels has no middle: in the paper's grid the values are shifted by half a step, and the tanh
        with them, so that 0 stays 0. The range reaches a thousandth beyond the outer levels. (The paper's listing stops
        as much short of them and undoes the shift with tan for atanh, which its author calls a mistake; the codes are
        the same.)
        """
        half_width_D, levels_D = self._grid(z_ND)
        half_range_D = (levels_D - 1) * (1 + 1e-3) / 2
        offset_D = half_width_D - (levels_D - 1) / 2
        bounded_ND = torch.tanh(z_ND + torch.atanh(offset_D / half_range_D)) * half_range_D - offset_D
        return bounded_ND / half_width_D

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """Round to the nearest level of each component, and number the combination; a NaN counts as the lowest."""
        half_width_D, levels_D = self._grid(u_ND)
        middle_D = half_width_D % 1  # 1/2 where no level is 0 / 没有零电平时为 1/2
        digits_ND = (u_ND.detach() * half_width_D - middle_D).round() + (half_width_D + middle_D)
        digits_ND = digits_ND.clamp(min=0).minimum(levels_D - 1).nan_to_num(0.0)
        return (digits_ND.long() * self._index_steps(u_ND)).sum(dim=1)

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """The digits of the index, as values in [-1, 1]."""
        half_width_D, levels_D = self._grid(indices_N)
        digits_ND = indices_N.unsqueeze(1) // self._index_steps(indices_N) % levels_D.long()
        return (digits_ND - half_width_D) / half_width_D

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Round; there is no loss."""
        indices_N = self.search(u_ND)
        return QuantizedVectors(indices_N, self.lookup(indices_N))

    def estimate(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Straight through, but for what `noise_dropout` leaves unrounded."""
        rounded_ND = super().estimate(u_ND, codes_ND)
        if not self.training or self.noise_dropout == 0:
            return rounded_ND
        half_width_D, _ = self._grid(u_ND)
        noisy_ND = u_ND + (torch.rand_like(u_ND) - 0.5) / half_width_D
        return torch.where(torch.rand_like(u_ND) < self.noise_dropout, noisy_ND, rounded_ND)

    def weights(self) -> dict[str, float]:
        """No terms."""
        return {}

    def make_symmetric(self) -> None:
        """See `PointwiseQuantizer.make_symmetric`: as with `symmetric=True`."""
        self.symmetric = True

    def residual_scale(self) -> list[float]:
        """So that the cells of the next grid fill one of this; the paper's even grid reaches less far up than down."""
        return [1 / (level if self.symmetric else level - 1 + level % 2) for level in self.levels]

    def _grid(self, beside: Tensor) -> tuple[Tensor, Tensor]:
        """Half widths (D,), so that codes are (digit - half width) / half width in [-1, 1]; numbers of levels (D,)."""
        half_widths = [(level - 1) / 2 if self.symmetric else level // 2 for level in self.levels]
        return constant(half_widths, beside, torch.float32), constant(self.levels, beside, torch.float32)

    def _index_steps(self, beside: Tensor) -> Tensor:
        """What a step of each component adds to the index: 1, levels[0], levels[0] * levels[1], …"""
        return constant([math.prod(self.levels[:d]) for d in range(len(self.levels))], beside, torch.int64)
