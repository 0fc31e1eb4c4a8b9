"""Grouped quantization: the channels in groups, each with a code of its own.

Source: product quantization (Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search"); with one codebook
shared by all groups it is the multi-head quantizer of the field.

G groups of K codes reach K**G vectors. `residual.py` reaches as many by adding codes up, one after the other; here they
stand side by side and are found independently.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.quantizers.base import average_terms
from smalti.quantizers.composite import CompositeQuantizer
from smalti.quantizers.rows import RowQuantizer, Rows


@final
class GroupedQuantizer(CompositeQuantizer):
    """G groups of consecutive channels; indices (B, *spatial, G).

    >>> pq = GroupedQuantizer([VectorQuantizer(256, 16) for _ in range(4)])
    >>> quantized, loss, indices = pq(torch.randn(1, 64, 8, 8))  # (1, 64, 8, 8), (), (1, 8, 8, 4)
    """

    def __init__(self, quantizers: Sequence[RowQuantizer], *, num_groups: int | None = None):
        """
        Args:
            quantizers: one per group, or a single one that all groups share (heads). The latent has as many channels
                as all groups together.
            num_groups: number of groups G; None: as many as quantizers.
        """
        super().__init__(quantizers, num_groups, "num_groups")
        self.embedding_dim = self.count * quantizers[0].embedding_dim

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Each group to where its codes live."""
        return torch.cat([self.part(g).project(z) for g, z in enumerate(self._split(z_ND))], dim=1)

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, "n q *code"]:
        """Each group on its own."""
        return torch.stack([self.part(g).search(u) for g, u in enumerate(self._split(u_ND))], dim=1)

    def lookup(self, indices: Int64[Tensor, "n q *code"]) -> Float[Tensor, "n d"]:
        """The codes of all groups side by side."""
        return torch.cat([self.part(g).lookup(group) for g, group in enumerate(indices.unbind(dim=1))], dim=1)

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> Rows:
        """Quantize each group; terms are means over groups."""
        groups = [self.part(g).quantize(u) for g, u in enumerate(self._split(u_ND))]
        return Rows(
            torch.stack([rows.indices for rows in groups], dim=1),
            torch.cat([rows.codes for rows in groups], dim=1),
            average_terms(rows.terms for rows in groups),
        )

    def estimate(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Each group as its quantizer does."""
        pairs = zip(self._split(u_ND), self._split(codes_ND), strict=True)
        return torch.cat([self.part(g).estimate(u, codes) for g, (u, codes) in enumerate(pairs)], dim=1)

    def vectors(self, u_ND: Float[Tensor, "n d"], indices: Int64[Tensor, "n q *code"]) -> list[Float[Tensor, "n _"]]:
        """The channels of each group."""
        return self._split(u_ND)

    def accepts(self, code_shape: tuple[int, ...]) -> bool:
        """Exactly G groups."""
        return len(code_shape) > 0 and code_shape[0] == self.count and self.part(0).accepts(code_shape[1:])

    def residual_scale(self) -> list[float]:
        """Those of the groups side by side."""
        return [scale for g in range(self.count) for scale in self.part(g).residual_scale()]

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`."""
        return super().config() | {"num_groups": self.count}

    def _split(self, x_ND: Tensor) -> list[Tensor]:
        return list(x_ND.split(self.part(0).embedding_dim, dim=1))
