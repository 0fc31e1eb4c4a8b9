"""What the scales of a pyramid see of a latent: the residual that the coarser ones left over.

Part of `multi_scale.py`, which walks over the scales and tells the method.

Legend: B images, C channels, H x W latent, h x w grid of scale k, N cells of a scale in the batch.
图例:B 张图像,C 通道,H×W 潜变量,h×w 为第 k 个尺度的网格,N 为批次中该尺度的格子数。
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from smalti.ops import to_grid
from smalti.quantizers.base import from_rows, to_rows
from smalti.quantizers.rows import RowQuantizer, select


class ScaleResiduals:
    """Chooses codes by quantizing what the coarser scales left over, and remembers what it saw for learning."""

    def __init__(
        self,
        quantizers: Sequence[RowQuantizer],
        f_BCHW: Float[Tensor, "b c h w"],
        grids: Sequence[tuple[int, int]],
        mask_BHW: Bool[Tensor, "b h w"] | None,
    ):
        """
        Args:
            quantizers: that of each scale.
            f_BCHW: the latent, where the codes live.
            grids: sides (h_k, w_k) of each scale.
            mask_BHW: True where a position of the latent is valid; None: everywhere.
        """
        self.quantizers, self.f_BCHW, self.grids = quantizers, f_BCHW, grids
        self.mask_B1HW = None if mask_BHW is None else mask_BHW.unsqueeze(1)
        self.vectors: list[Tensor] = []
        """Residual vectors of valid cells, one (n_k, C) a scale."""
        self.indices: list[Tensor] = []
        """The codes they chose, one (n_k, *code_shape) a scale."""
        self.images: list[Tensor] = []
        """Which image of the batch each belongs to, one (n_k,) a scale."""
        self.terms: list[dict[str, Tensor]] = []
        """The quantizer's loss terms, one dictionary a scale."""

    def search(self, k: int, f_hat_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Indices and codes of the residual seen at scale k, and nothing else."""
        u_ND, _ = self._look(k, f_hat_BCHW)
        indices = self.quantizers[k].search(u_ND)
        return self._maps(indices, self.quantizers[k].lookup(indices), k)

    def quantize(self, k: int, f_hat_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Indices and codes of the residual seen at scale k, with gradients and loss terms."""
        u_ND, valid_N = self._look(k, f_hat_BCHW if self.quantizers[k].soft else f_hat_BCHW.detach())
        rows = self.quantizers[k].quantize_valid(u_ND, valid_N)
        self.vectors.append(select(u_ND, valid_N).detach())
        self.indices.append(select(rows.indices, valid_N))
        batch, cells = self.f_BCHW.shape[0], self.grids[k][0] * self.grids[k][1]
        images_N = torch.arange(batch, device=u_ND.device).repeat_interleave(cells)
        self.images.append(select(images_N, valid_N))
        self.terms.append(rows.terms)
        return self._maps(rows.indices, rows.codes, k)

    def rows(self, scales: Sequence[int]) -> tuple[Tensor, Tensor]:
        """All vectors (N, C) and indices (N, *code_shape) of some scales, image after image.

        Then the rows of several processes, one process after the other, are in the order in which one would have them.
        """
        order_N = torch.cat([self.images[k] for k in scales]).argsort(stable=True)
        vectors_ND, indices = (torch.cat([rows[k] for k in scales]) for rows in (self.vectors, self.indices))
        return vectors_ND[order_N], indices[order_N]

    def _look(self, k: int, f_hat_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """The residual at scale k, one cell a row, and which cells are valid."""
        residual_BCHW = self.f_BCHW - f_hat_BCHW
        if self.mask_B1HW is None:
            return to_rows(to_grid(residual_BCHW, self.grids[k])), None
        # The mean over valid positions only; a cell without any is not valid itself / 只对有效位置取平均
        share_B1hw = to_grid(self.mask_B1HW.to(residual_BCHW.dtype), self.grids[k])
        sum_BChw = to_grid(residual_BCHW.masked_fill(~self.mask_B1HW, 0), self.grids[k])
        return to_rows(sum_BChw / share_B1hw.clamp(min=1e-12)), share_B1hw.reshape(-1) > 0

    def _maps(self, indices: Tensor, codes_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
        grid = (self.f_BCHW.shape[0], *self.grids[k])
        return indices.reshape(*grid, *indices.shape[1:]), from_rows(codes_ND, grid)
