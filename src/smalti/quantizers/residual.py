"""Residual quantization: each level quantizes what the levels before it left over.

Source: SoundStream (Zeghidour et al. 2021, arXiv 2107.03312), section 3.3, for codebooks per level and quantizer
dropout; RQ-VAE (Lee et al. 2022, arXiv 2203.01941) for images and one codebook shared by all levels; scales of fixed
grids follow the residual FSQ of vector-quantize-pytorch.

It refines in value where `multi_scale.py` refines in space, and adds codes up where `grouped.py` puts them side by
side. Q levels of K codes reach K**Q vectors.
"""

from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.quantizers.base import DISTANCE_TERMS, Indices, average_terms
from smalti.quantizers.composite import CompositeQuantizer
from smalti.quantizers.rows import RowQuantizer, Rows, constant


@final
class ResidualQuantizer(CompositeQuantizer):
    """Q levels, coarse to fine; indices (B, *spatial, Q).

    >>> rq = ResidualQuantizer([VectorQuantizer(1024, 64) for _ in range(4)])
    >>> quantized, loss, indices = rq(torch.randn(1, 64, 8, 8))  # (1, 64, 8, 8), (), (1, 8, 8, 4)

    Decoding takes the first levels alone, too: `rq.decode(indices[..., :2])`.
    """

    scales: list[list[float]]
    """What the codes of each level are multiplied with, (Q, D): 1 for learned tables, ever smaller for fixed grids."""

    def __init__(
        self,
        quantizers: Sequence[RowQuantizer],
        *,
        num_quantizers: int | None = None,
        quantizer_dropout: float = 0.0,
        symmetric: bool = True,
    ):
        """
        Args:
            quantizers: one per level, or a single one that all levels share.
            num_quantizers: number of levels Q; None: as many as quantizers.
            quantizer_dropout: probability that a training pass shows the decoder only the first n levels, n drawn from
                1 to Q, so that one model serves all rates. The other levels still learn from the pass.
            symmetric: make grids of fixed codes symmetric (`RowQuantizer.make_symmetric`), or levels after the first
                leave codes unused. False is how models were saved before there was a choice, and what a configuration
                without this argument means.
        """
        super().__init__(quantizers, num_quantizers, "num_quantizers")
        if not 0 <= quantizer_dropout <= 1:
            raise ValueError(f"quantizer_dropout: got {quantizer_dropout}, expected 0 to 1")
        self.embedding_dim, self.quantizer_dropout = quantizers[0].embedding_dim, quantizer_dropout
        self.symmetric = symmetric
        if symmetric:
            self.make_symmetric()
        scales = [torch.ones(self.embedding_dim, dtype=torch.float32, device="cpu")]
        for q in range(self.count - 1):
            scales.append(scales[-1] * _fp32(self.part(q).residual_scale()))
        self.scales = [scale_D.tolist() for scale_D in scales]

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """To where the codes of the first level live; residuals are taken there."""
        return self.part(0).project(z_ND)

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, "n q *code"]:
        """One level after the other."""
        chosen: list[Tensor] = []
        total_ND = torch.zeros_like(u_ND)
        for q, scale_D in enumerate(self._scales(u_ND)):
            chosen.append(self.part(q).search((u_ND - total_ND) / scale_D))
            total_ND = total_ND + self.part(q).lookup(chosen[q]).detach() * scale_D
        return torch.stack(chosen, dim=1)

    def lookup(self, indices: Int64[Tensor, "n q *code"]) -> Float[Tensor, "n d"]:
        """Sum of the codes of all levels given."""
        *_, total_ND = self._partial_sums(indices)
        return total_ND

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> Rows:
        """Quantize level by level; terms are means over levels."""
        chosen, terms = [], []
        total_ND = kept_ND = torch.zeros_like(u_ND)
        keep_Q = self._kept_levels(u_ND.device)
        for q, scale_D in enumerate(self._scales(u_ND)):
            # Hard codes are constants to the next level; soft ones depend on u and the chain rule goes through them
            # 硬码字对下一层是常数;软码字依赖 u,链式法则要经过它
            residual_ND = u_ND - (total_ND if self.soft else total_ND.detach())
            rows = self.part(q).quantize(residual_ND / scale_D)
            codes_ND = rows.codes * scale_D
            total_ND = total_ND + codes_ND
            kept_ND = total_ND if keep_Q is None else kept_ND + keep_Q[q] * codes_ND
            chosen.append(rows.indices)
            terms.append(_rescale(rows.terms, scale_D))
        return Rows(torch.stack(chosen, dim=1), kept_ND, average_terms(terms))

    def estimate(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """As the levels do, on the sum."""
        return self.part(0).estimate(u_ND, codes_ND)

    def vectors(
        self, u_ND: Float[Tensor, "n d"], indices: Int64[Tensor, "n q *code"]
    ) -> Iterator[Float[Tensor, "n d"]]:
        """The residual before each level, in units of its scale."""
        sums = [torch.zeros_like(u_ND), *self._partial_sums(indices)]
        return ((u_ND - before) / scale_D for before, scale_D in zip(sums, self._scales(u_ND), strict=False))

    def decode_progressive(self, indices: Indices) -> list[Float[Tensor, "b c *spatial"]]:
        """Quantized latents after each level, coarse to fine."""
        self.decode(indices)  # refuses what is not indices
        assert isinstance(indices, Tensor)
        levels = -len(self.code_shape)
        return [self.decode(indices.narrow(levels, 0, n + 1)) for n in range(indices.shape[levels])]

    def accepts(self, code_shape: tuple[int, ...]) -> bool:
        """Any number of first levels, from 1."""
        return len(code_shape) > 0 and 1 <= code_shape[0] <= self.count and self.part(0).accepts(code_shape[1:])

    def residual_scale(self) -> list[float]:
        """What all levels together leave over."""
        return (_fp32(self.scales[-1]) * _fp32(self.part(self.count - 1).residual_scale())).tolist()

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`."""
        config = super().config() | {"num_quantizers": self.count, "quantizer_dropout": self.quantizer_dropout}
        return config | ({"symmetric": True} if self.symmetric else {})

    def _partial_sums(self, indices: Tensor) -> Iterator[Tensor]:
        total_ND = torch.zeros((), dtype=torch.float32, device=indices.device)
        for q, (indices_N, scale_D) in enumerate(zip(indices.unbind(dim=1), self._scales(indices), strict=False)):
            total_ND = total_ND + self.part(q).lookup(indices_N) * scale_D
            yield total_ND

    def _scales(self, beside: Tensor) -> tuple[Tensor, ...]:
        """The scale (D,) of each level."""
        return constant([s for scale in self.scales for s in scale], beside, torch.float32).chunk(self.count)

    def _kept_levels(self, device: torch.device) -> Tensor | None:
        """1 for levels that the decoder sees in this pass, 0 for the others; None: all."""
        if not self.training or self.quantizer_dropout == 0:
            return None
        depth = torch.randint(1, self.count + 1, (), device=device)
        drop = torch.rand((), dtype=torch.float32, device=device) < self.quantizer_dropout
        return ((torch.arange(self.count, device=device) < depth) | ~drop).float()


def _fp32(values: list[float]) -> Tensor:
    """On the CPU, also where a model is built on the meta device."""
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def _rescale(terms: dict[str, Tensor], scale_D: Tensor) -> dict[str, Tensor]:
    """Distances measured in units of a level's scale, back in units of the latent."""
    area = scale_D.square().mean()
    return {name: term * area if name in DISTANCE_TERMS else term for name, term in terms.items()}
