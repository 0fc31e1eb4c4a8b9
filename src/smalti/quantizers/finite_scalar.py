"""FSQ: round each dimension to one of a few levels; the codebook is the grid of all combinations, never stored.

Source: Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple" (arXiv 2309.15505), appendix A. The
symmetric grid is that of Parker et al. 2024, "Scaling Transformers for Low-Bitrate High-Quality Speech Coding" (arXiv
2411.19842).

The quantizer has no parameters and no loss: the encoder learns to use the grid. `binary.py` is the same idea
with two levels, an unbounded latent and an entropy loss instead of the bound.
每一维各自取整到少数几个电平；码本是所有组合构成的网格，不存储，也不学习。

Legend: N vectors, D dimensions.
图例：N 个向量，D 维。
"""

import math
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.checks import between, expect
from smalti.formats.arguments import checked
from smalti.quantizers.base import PointwiseQuantizer, QuantizedVectors
from smalti.quantizers.latents import constant


@final
class FiniteScalarQuantizer(PointwiseQuantizer):
    """Rounding to `levels[d]` values in dimension d; no loss.

    >>> fsq = FiniteScalarQuantizer(levels=[8, 5, 5, 5])  # 1000 codes of dimension 4
    >>> quantized, loss, indices = fsq(torch.randn(1, 4, 8, 8))  # (1, 4, 8, 8), 0, (1, 8, 8)
    """

    older_defaults: ClassVar = {"symmetric": False, "noise_dropout": 0.0}

    @checked
    def __init__(self, levels: Sequence[int], *, symmetric: bool = False, noise_dropout: float = 0.0):
        """
        Args:
            levels: number of values per dimension, at least 2 each. Their count is `embedding_dim`, their product
                `num_embeddings`. The paper suggests [8, 5, 5, 5] for about 2^10 codes, [7, 5, 5, 5, 5] for 2^12,
                [8, 8, 8, 5, 5, 5] for 2^16, and at least 5 levels: with 2, z must fall below -3.8 to change its level
                (for two levels use `binary.py`).
            symmetric: True: values evenly spaced from -1 to 1. An even number of levels then has no value 0, and 2
                levels are the signs. False: the paper's grid; with an even number the highest value is below 1.
            noise_dropout: probability that training adds noise of one step's width to a dimension instead of rounding
                it (Parker et al.). The decoder then learns values between the levels. Indices do not change.
        """
        super().__init__()
        between(0, 1, noise_dropout=noise_dropout)
        levels = [int(level) for level in levels]
        sizes = bool(levels) and min(levels) >= 2 and max(levels) <= 2**24
        expect(sizes, "levels", levels, "at least one level count, each from 2 to 2^24 (the limit of fp32)")
        expect(math.prod(levels) <= 2**62, "levels", levels, "a product of at most 2^62 (the limit of an int64 index)")
        self.levels, self.symmetric, self.noise_dropout = levels, symmetric, noise_dropout
        self.embedding_dim, self.num_embeddings = len(levels), math.prod(levels)
        self.register_buffer("on_device", torch.empty(0), persistent=False)  # holds the device

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Bound each dimension with a tanh, so that rounding yields exactly `levels` values.

        An even number of levels has no middle value: the paper's grid shifts values and tanh by half a step, so that 0
        stays 0. The range extends 0.1% beyond the outer levels. (In the paper's listing it ends 0.1% inside them, and
        the shift uses tan instead of atanh, which its author calls a mistake; the codes are the same.)

        用 tanh 限制每一维的范围，使取整后恰好有 `levels` 个值。
        """
        half_width_D, levels_D = self._grid(z_ND)
        half_range_D = (levels_D - 1) * (1 + 1e-3) / 2
        offset_D = half_width_D - (levels_D - 1) / 2
        bounded_ND = torch.tanh(z_ND + torch.atanh(offset_D / half_range_D)) * half_range_D - offset_D
        return bounded_ND / half_width_D

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """Round each dimension to its nearest level; the index is the number of the combination. NaN: lowest level.

        每一维取整到最近的电平，再把组合编号为索引。
        """
        half_width_D, levels_D = self._grid(u_ND)
        middle_D = half_width_D % 1  # 1/2 where no level is 0 / 没有零电平时为 1/2
        digits_ND = (u_ND.detach() * half_width_D - middle_D).round() + (half_width_D + middle_D)
        digits_ND = digits_ND.clamp(min=0).minimum(levels_D - 1).nan_to_num(0.0)
        return (digits_ND.long() * self._index_steps(u_ND)).sum(dim=1)

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """The digits of the index, as values in [-1, 1]. 索引的各位数字，换算为 [-1, 1] 中的值。"""
        half_width_D, levels_D = self._grid(indices_N)
        digits_ND = indices_N.unsqueeze(1) // self._index_steps(indices_N) % levels_D.long()
        return (digits_ND - half_width_D) / half_width_D

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Round; no loss terms."""
        indices_N = self.search(u_ND)
        return QuantizedVectors(indices_N, self.lookup(indices_N))

    def estimate(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Straight-through, except where `noise_dropout` adds noise instead of rounding."""
        rounded_ND = super().estimate(u_ND, codes_ND)
        if not self.training or self.noise_dropout == 0:
            return rounded_ND
        half_width_D, _ = self._grid(u_ND)
        noisy_ND = u_ND + (torch.rand_like(u_ND) - 0.5) / half_width_D
        return torch.where(torch.rand_like(u_ND) < self.noise_dropout, noisy_ND, rounded_ND)

    def weights(self) -> dict[str, float]:
        """No loss terms."""
        return {}

    def make_symmetric(self) -> None:
        """See `PointwiseQuantizer.make_symmetric`: sets `symmetric=True`."""
        self.symmetric = True

    def residual_scale(self) -> list[float]:
        """One over the steps: the next grid fills one cell of this one. The paper's even grid is not symmetric."""
        return [1 / (level if self.symmetric else level - 1 + level % 2) for level in self.levels]

    def _grid(self, beside: Tensor) -> tuple[Tensor, Tensor]:
        """Half widths (D,), with codes (digit - half width) / half width in [-1, 1]; and numbers of levels (D,)."""
        half_widths = [(level - 1) / 2 if self.symmetric else level // 2 for level in self.levels]
        return constant(half_widths, beside, torch.float32), constant(self.levels, beside, torch.float32)

    def _index_steps(self, beside: Tensor) -> Tensor:
        """Increment of the index per step of each dimension: 1, levels[0], levels[0] * levels[1], …"""
        return constant([math.prod(self.levels[:d]) for d in range(len(self.levels))], beside, torch.int64)
