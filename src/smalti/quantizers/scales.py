"""Parts of the multi-scale quantizer: the convolution φ, and the residual of a latent at each scale.

The loop over the scales and the method are in `multi_scale.py`.

Legend: B images, C channels, H x W latent, h x w grid of scale k, N cells of a scale in the batch.
图例：B 张图像，C 通道，H×W 潜变量，h×w 为第 k 个尺度的网格，N 为批次中该尺度的格子数。
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from smalti.ops import to_grid
from smalti.quantizers.base import PointwiseQuantizer
from smalti.quantizers.latents import from_vectors, select, to_vectors

VAR_NUM_PHI = 4
"""Number of φ in VAR, and the default."""


class Phi(nn.Module):
    """φ corrects the blur of up-sampling a token map: a 3×3 convolution mixed with the identity.

    φ 修正词元图放大后的模糊：3×3 卷积与恒等映射的混合。

    (1 − ratio) · h + ratio · conv(h). Source: VAR (Tian et al. 2024, arXiv 2404.02905), section 3.2.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, dtype=torch.float32)

    def forward(self, h_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """(B, C, H, W) to the same shape."""
        return h_BCHW * (1 - self.ratio) + self.conv(h_BCHW) * self.ratio


def phi_of_scale(k: int, num_scales: int, num_phi: int) -> int:
    """Index of the φ of scale `k`: the one with its tick nearest to k / (num_scales - 1) in [0, 1].

    The ticks equal those of VAR's published code to the last bit, as its checkpoints require: some scales lie halfway
    between two ticks.

    >>> [phi_of_scale(k, 10, 4) for k in range(10)]
    [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    """
    margin = 1 / 3 / num_phi if num_phi == VAR_NUM_PHI else 1 / 2 / num_phi
    step = (1 - margin - margin) / max(1, num_phi - 1)
    ticks = [margin + i * step for i in range(num_phi - 1)] + [1 - margin if num_phi > 1 else margin]
    place = k / max(1, num_scales - 1)
    return min(range(num_phi), key=lambda i: abs(ticks[i] - place))


class ScaleResiduals:
    """Quantizes the residual of the coarser scales, and keeps vectors and indices for the codebook update.

    量化较粗尺度留下的残差，并保存向量与索引供码本更新。
    """

    def __init__(
        self,
        quantizers: Sequence[PointwiseQuantizer],
        f_BCHW: Float[Tensor, "b c h w"],
        grids: Sequence[tuple[int, int]],
        mask_BHW: Bool[Tensor, "b h w"] | None,
        project: bool = False,
    ):
        """
        Args:
            quantizers: the quantizer of each scale.
            f_BCHW: the latent, projected to the space of the codes unless `project`.
            grids: sides (h_k, w_k) of each scale.
            mask_BHW: True where a position of the latent is valid; None: all positions are valid.
            project: whether the residual of each scale is projected to the space of the codes.
        """
        self.project = project
        self.quantizers, self.f_BCHW, self.grids = quantizers, f_BCHW, grids
        self.mask_B1HW = None if mask_BHW is None else mask_BHW.unsqueeze(1)
        self.vectors: list[Tensor] = []
        """Residual vectors of valid cells, one (n_k, C) per scale."""
        self.indices: list[Tensor] = []
        """The indices of their codes, one (n_k, *code_shape) per scale."""
        self.images: list[Tensor] = []
        """The image of the batch that each vector belongs to, one (n_k,) per scale."""
        self.distances: list[dict[str, Tensor]] = []
        """The quantizer's distances (`QuantizedVectors.distances`), one dictionary per scale."""
        self.entropies: list[dict[str, Tensor]] = []
        """The quantizer's entropies, one dictionary per scale."""

    def search(self, k: int, f_hat_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Indices and codes of the residual at scale k, without gradients or loss terms."""
        u_ND, _ = self._projected(k, f_hat_BCHW)
        indices = self.quantizers[k].search(u_ND)
        return self._maps(indices, self.quantizers[k].lookup(indices), k)

    def quantize(self, k: int, f_hat_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Indices and codes of the residual at scale k, with gradients and loss terms."""
        u_ND, valid_N = self._projected(k, f_hat_BCHW if self.quantizers[k].soft else f_hat_BCHW.detach())
        found = self.quantizers[k].quantize_valid(u_ND, valid_N)
        self.vectors.append(select(u_ND, valid_N).detach())
        self.indices.append(select(found.indices, valid_N))
        batch, cells = self.f_BCHW.shape[0], self.grids[k][0] * self.grids[k][1]
        images_N = torch.arange(batch, device=u_ND.device).repeat_interleave(cells)
        self.images.append(select(images_N, valid_N))
        self.distances.append(found.distances)
        self.entropies.append(found.entropies)
        return self._maps(found.indices, found.codes, k)

    def joined(self, scales: Sequence[int]) -> tuple[Tensor, Tensor]:
        """All vectors (N, C) and indices (N, *code_shape) of some scales, ordered by image.

        Concatenated over several processes they are then in the same order as in a single process.
        """
        order_N = torch.cat([self.images[k] for k in scales]).argsort(stable=True)
        vectors_ND, indices = (torch.cat([of_scale[k] for k in scales]) for of_scale in (self.vectors, self.indices))
        return vectors_ND[order_N], indices[order_N]

    def _projected(self, k: int, f_hat_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """The residual at scale k in the space of the codes, and the mask of valid cells."""
        u_ND, valid_N = self._look(k, f_hat_BCHW)
        return self.quantizers[k].project(u_ND) if self.project else u_ND, valid_N

    def _look(self, k: int, f_hat_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """The residual at scale k as vectors (n_k, C), and the mask of valid cells."""
        residual_BCHW = self.f_BCHW - f_hat_BCHW
        if self.mask_B1HW is None:
            return to_vectors(to_grid(residual_BCHW, self.grids[k])), None
        # Mean over valid positions only; a cell without a valid position is invalid / 只对有效位置取平均
        # valid_B1hw: fraction of valid positions in each cell / 每个格子中有效位置的比例
        valid_B1hw = to_grid(self.mask_B1HW.to(residual_BCHW.dtype), self.grids[k])
        sum_BChw = to_grid(residual_BCHW.masked_fill(~self.mask_B1HW, 0), self.grids[k])
        return to_vectors(sum_BChw / valid_B1hw.clamp(min=1e-12)), valid_B1hw.reshape(-1) > 0

    def _maps(self, indices: Tensor, codes_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
        grid = (self.f_BCHW.shape[0], *self.grids[k])
        return indices.reshape(*grid, *indices.shape[1:]), from_vectors(codes_ND, grid)


def to_map(z_ND: Tensor, like_BCHW: Tensor) -> Tensor:
    """Vectors (N, C) as a map (B, C, H, W), in the memory layout of f_hat.

    The decoder then gives bitwise equal images after `forward` and after `decode`. `clone`, because `contiguous` does
    not change the strides of axes of length 1.
    """
    z_BCHW = from_vectors(z_ND, (like_BCHW.shape[0], *like_BCHW.shape[2:]))
    return z_BCHW.clone(memory_format=torch.contiguous_format)
