"""The residual multi-scale quantizer of VAR: from one token for the whole image to one for each latent cell.

Source: Tian et al. 2024, "Visual Autoregressive Modeling" (arXiv 2404.02905), algorithms 1 and 2. All scales share one
codebook. Each scale looks at what the coarser ones left over:

    residual -> area-downsample -> nearest code -> bicubic-upsample -> convolve with φ -> add to f_hat

It wraps a codebook quantizer (`vector.py`, `ema.py`), which searches and learns; this file only walks over the scales.
The step itself is `ops.add_scale`, and the one loop over it is `_walk`: training, encoding, decoding and the input of
a next-scale generator all go through it, so they cannot disagree.

Legend: B images, C channels, H x W latent, K scales, h_k x w_k grid of scale k, l_k = h_k * w_k, L = sum of l_k.
图例:B 张图像,C 通道,H×W 潜变量,K 个尺度,第 k 个尺度的网格 h_k×w_k,l_k = h_k·w_k,L 为总词元数。
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from smalti.ops import add_scale, count_codes, proportional_grids, straight_through, to_grid
from smalti.quantizers.base import Indices, Quantizer, QuantizerOutput, check_indices, from_rows, positive, to_rows
from smalti.quantizers.codebook import CodebookQuantizer, mean_square
from smalti.quantizers.vector import VectorQuantizer

Grids = tuple[tuple[int, int], ...]


class Phi(nn.Module):
    """φ: a 3×3 convolution mixed with the identity, (1 - ratio) · h + ratio · conv(h)."""

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, h_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """(B, C, H, W) to the same shape."""
        return h_BCHW * (1 - self.ratio) + self.conv(h_BCHW) * self.ratio


class Scale(NamedTuple):
    """One scale of the walk."""

    indices_Bhw: Tensor
    """Codes chosen at this scale."""
    f_hat_BCHW: Tensor
    """Latent accumulated up to and including this scale."""


@final
class MultiScaleQuantizer(Quantizer):
    """Quantize a latent (B, C, H, W) as token maps of growing size.

    >>> vq = MultiScaleQuantizer(num_embeddings=512, embedding_dim=32, patch_nums=(1, 2, 4, 8))
    >>> quantized, loss, indices = vq(torch.randn(2, 32, 8, 8))
    >>> [tuple(i.shape) for i in indices]
    [(2, 1, 1), (2, 2, 2), (2, 4, 4), (2, 8, 8)]
    """

    scale_usage: Float[Tensor, "scales k"]
    """Moving average of how often each code is chosen at each scale, per training batch."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        patch_nums: Sequence[int],
        beta: float = 0.25,
        *,
        num_phi: int = 4,
        phi_ratio: float = 0.5,
        quantizer: CodebookQuantizer | None = None,
    ):
        """
        Args:
            num_embeddings: number of codes, shared by all scales.
            embedding_dim: channels C of the latent.
            patch_nums: side lengths of the scales for the square latent of training, coarse to fine; the last is the
                latent's own side. Latents of other sizes get scales in proportion (`ops.proportional_grids`).
            beta: weight of the commitment term.
            num_phi: 1: all scales share one φ; len(patch_nums): one per scale; between: neighbours share (VAR: 4).
            phi_ratio: share of the convolution in φ, 0 (no convolution at all) to 1.
            quantizer: the codebook that searches and learns; default `VectorQuantizer(num_embeddings, embedding_dim)`.
        """
        super().__init__()
        positive(num_embeddings=num_embeddings, embedding_dim=embedding_dim, num_phi=num_phi)
        sides = tuple(patch_nums)
        if not sides or any(side != int(side) for side in sides) or sides[0] < 1 or list(sides) != sorted(sides):
            raise ValueError(f"patch_nums: got {sides}, expected whole side lengths of at least 1 in growing order")
        if num_phi > len(sides) and num_phi != 4:
            raise ValueError(f"num_phi: got {num_phi}, expected 1 to {len(sides)}, the number of scales")
        if not 0 <= phi_ratio <= 1:
            raise ValueError(f"phi_ratio: got {phi_ratio}, expected 0 to 1")
        if not beta >= 0:
            raise ValueError(f"beta: got {beta}, expected at least 0")
        quantizer = quantizer or VectorQuantizer(num_embeddings, embedding_dim)
        if (quantizer.num_embeddings, quantizer.embedding_dim) != (num_embeddings, embedding_dim):
            raise ValueError(
                f"quantizer: has {quantizer.num_embeddings} codes of dimension {quantizer.embedding_dim}, "
                f"expected {num_embeddings} of dimension {embedding_dim}"
            )
        self.num_embeddings, self.embedding_dim, self.patch_nums = num_embeddings, embedding_dim, sides
        self.beta, self.phi_ratio = beta, phi_ratio
        self.quantizer = quantizer
        self.phis = nn.ModuleList(Phi(embedding_dim, phi_ratio) for _ in range(num_phi if phi_ratio > 0 else 0))
        self.register_buffer("scale_usage", torch.zeros(len(sides), num_embeddings))

    # ---- the contract -------------------------------------------------------------------------------------------

    def forward(
        self,
        z: Shaped[Tensor, "b *c_h_w"],
        mask: Shaped[Tensor, "b ..."] | None = None,
        grids: Sequence[Sequence[int]] | None = None,
    ) -> QuantizerOutput:
        """See `Quantizer.forward`; indices are one (B, h_k, w_k) per scale, coarse to fine.

        The terms compare the latent with f_hat after every scale and average over scales, as in VAR's code:
        codebook = mean_k ‖f_hat_k − sg[z]‖² (it trains codes and φ), commitment = mean_k ‖sg[f_hat_k] − z‖².

        Args:
            z: latent (B, C, H, W).
            mask: True where a position of the latent is valid, (B, H, W).
            grids: sides (h_k, w_k) of each scale; default: in proportion to `patch_nums`.
        """
        self._check_latent(z, mask)
        grids = self._grids_for(z, grids)
        with torch.autocast(z.device.type, enabled=False):
            # Padding may hold anything, NaN included, and φ looks at neighbours / 填充位置置零,避免污染邻域
            f_BCHW = z.float() if mask is None else z.float().masked_fill(~mask.unsqueeze(1), 0)
            if self.training and self.quantizer.initialising:
                residuals = _Residuals(self.quantizer, f_BCHW.detach(), grids, mask)
                list(self._walk(residuals.choose, f_BCHW.shape[0], grids))
                self.quantizer.initialise(residuals.rows()[0])
            residuals = _Residuals(self.quantizer, f_BCHW.detach(), grids, mask)
            scales = list(self._walk(residuals.choose, f_BCHW.shape[0], grids))
            # Losses after every scale, over valid positions / 每个尺度之后都计算损失,仅限有效位置
            f_valid, *f_hat_valid = (_valid(f, mask) for f in (f_BCHW, *(scale.f_hat_BCHW for scale in scales)))
            terms = {
                "codebook": torch.stack([mean_square(f_hat, f_valid.detach()) for f_hat in f_hat_valid]).mean(),
                "commitment": torch.stack([mean_square(f_hat.detach(), f_valid) for f_hat in f_hat_valid]).mean(),
            }
            quantized = straight_through(f_BCHW, scales[-1].f_hat_BCHW)
            if self.training and not self.frozen:
                self._learn(residuals)
        return QuantizerOutput(
            quantized=quantized.to(z.dtype),
            indices=tuple(scale.indices_Bhw for scale in scales),
            terms=terms,
            weights={"codebook": 1.0, "commitment": self.beta},
        )

    @torch.no_grad()
    def encode(self, z: Shaped[Tensor, "b *c_h_w"], grids: Sequence[Sequence[int]] | None = None) -> Indices:
        """Indices of a latent (B, C, H, W): one (B, h_k, w_k) per scale, coarse to fine."""
        self._check_latent(z, None)
        grids = self._grids_for(z, grids)
        with torch.autocast(z.device.type, enabled=False):
            residuals = _Residuals(self.quantizer, z.float(), grids, None)
            return tuple(scale.indices_Bhw for scale in self._walk(residuals.choose, z.shape[0], grids))

    def decode(self, indices: Indices) -> Float[Tensor, "b c h w"]:
        """f_hat (B, C, H, W) in fp32 of the indices of all scales."""
        return self.decode_progressive(indices)[-1]

    def decode_progressive(self, indices: Indices) -> list[Float[Tensor, "b c h w"]]:
        """f_hat (B, C, H, W) after each scale, coarse to fine."""
        scales, grids = self._check_scales(indices)
        with torch.autocast(scales[0].device.type, enabled=False):
            return [scale.f_hat_BCHW for scale in self._walk(lambda k, _: scales[k], scales[0].shape[0], grids)]

    def next_scale_input(
        self, k: int, f_hat_BCHW: Float[Tensor, "b c h w"], codes_BChw: Float[Tensor, "b c hk wk"], grids: Grids
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c hn wn"]]:
        """One step of a next-scale generator: add the codes of scale `k`, look at the result at scale k + 1.

        Training by teacher forcing (`var_input`) and sampling scale by scale both call this function.

        Args:
            k: the scale that the codes belong to, from 0.
            f_hat_BCHW: what the scales before k add up to; zeros at k = 0.
            codes_BChw: code vectors of scale k.
            grids: (h_k, w_k) of all scales.

        Returns:
            The new f_hat (B, C, H, W), and it seen at the grid of scale k + 1 (at the last scale: f_hat itself).
        """
        with torch.autocast(f_hat_BCHW.device.type, enabled=False):
            f_hat_BCHW = add_scale(f_hat_BCHW, codes_BChw, self.phi(k))
            return f_hat_BCHW, to_grid(f_hat_BCHW, grids[min(k + 1, len(grids) - 1)])

    def var_input(self, indices: Indices) -> Float[Tensor, "b l c"]:
        """Teacher-forcing input of a next-scale generator (B, L - l_1, C) of the indices of all scales.

        Rows of scale k + 1 are f_hat up to scale k, seen at the grid of scale k + 1; the first scale has no row, a
        generator starts it from its class embedding. With a single scale there is nothing to predict from, and the
        rows are the code vectors in raster order (B, L, C).
        """
        scales, grids = self._check_scales(indices)
        if len(scales) == 1:
            return super().var_input(scales)
        f_hat_BCHW = self._zeros(scales[0].shape[0], grids)
        rows = []
        for k in range(len(scales) - 1):
            f_hat_BCHW, input_BChw = self.next_scale_input(k, f_hat_BCHW, self._codes(scales[k]), grids)
            rows.append(input_BChw.flatten(2).transpose(1, 2))
        return torch.cat(rows, dim=1)

    def phi(self, k: int) -> nn.Module:
        """φ of scale `k`: with fewer φ than scales, the one whose tick lies nearest to k / (K - 1) in [0, 1].

        The ticks are those of VAR's published code, which its checkpoints depend on.
        """
        if len(self.phis) == 0:
            return nn.Identity()
        count = len(self.phis)
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        ticks = np.linspace(margin, 1 - margin, count)
        at = k / max(1, len(self.patch_nums) - 1)
        return self.phis[int(np.argmin(np.abs(ticks - at)))]

    def get_codebook(self) -> Float[Tensor, "k d"]:
        """The codes (num_embeddings, embedding_dim), shared by all scales."""
        return self.quantizer.get_codebook()

    def freeze(self) -> None:
        """See `Quantizer.freeze`; φ is part of what is held fixed."""
        super().freeze()
        self.quantizer.freeze()

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`."""
        return {
            "type": type(self).__name__,
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "patch_nums": list(self.patch_nums),
            "beta": self.beta,
            "num_phi": max(1, len(self.phis)),
            "phi_ratio": self.phi_ratio,
            "quantizer": self.quantizer.config(),
        }

    # ---- the one loop over scales -------------------------------------------------------------------------------

    def _walk(self, choose: Callable[[int, Tensor], Tensor], batch: int, grids: Grids) -> Iterator[Scale]:
        """Coarse to fine: `choose(k, f_hat)` names the codes of scale k, then they are added to f_hat."""
        f_hat_BCHW = self._zeros(batch, grids)
        for k in range(len(grids)):
            # Codes of this scale: searched when encoding, given when decoding / 编码时查找,解码时直接给出
            indices_Bhw = choose(k, f_hat_BCHW)
            # Enlarge, φ, accumulate / 放大、φ 卷积、累加: (B, C, h_k, w_k) -> (B, C, H, W)
            f_hat_BCHW = add_scale(f_hat_BCHW, self._codes(indices_Bhw), self.phi(k))
            yield Scale(indices_Bhw, f_hat_BCHW)

    def _learn(self, residuals: "_Residuals") -> None:
        """Let the codebook learn from all scales at once, and keep the usage of each."""
        self.quantizer.learn(*residuals.rows())
        decay = self.quantizer.decay
        for k, indices_N in enumerate(residuals.indices):
            self.scale_usage[k].lerp_(count_codes(indices_N, self.num_embeddings).float(), 1 - decay)

    def _codes(self, indices_Bhw: Tensor) -> Tensor:
        return from_rows(self.quantizer.lookup(indices_Bhw.reshape(-1)), tuple(indices_Bhw.shape))

    def _zeros(self, batch: int, grids: Grids) -> Tensor:
        return torch.zeros(batch, self.embedding_dim, *grids[-1], device=self.scale_usage.device)

    # ---- checks -------------------------------------------------------------------------------------------------

    def _grids_for(self, z: Tensor, grids: Sequence[Sequence[int]] | None) -> Grids:
        if z.dim() != 4 or min(z.shape[2:]) < 1:
            raise ValueError(f"z: got shape {tuple(z.shape)}, expected (B, C, H, W) with H, W >= 1")
        size = (z.shape[2], z.shape[3])
        if grids is None:
            return proportional_grids(self.patch_nums, *size)
        if any(len(grid) != 2 for grid in grids):
            raise ValueError(f"grids: got {grids}, expected one (h_k, w_k) per scale")
        sides = tuple((h, w) for h, w in grids)
        fits = all(1 <= h <= size[0] and 1 <= w <= size[1] for h, w in sides)
        if len(sides) != len(self.patch_nums) or not fits or sides[-1] != size:
            raise ValueError(
                f"grids: got {sides}, expected {len(self.patch_nums)} scales within and ending with {size}"
            )
        return sides

    def _check_scales(self, indices: Indices) -> tuple[tuple[Tensor, ...], Grids]:
        """Refuse indices that are not one (B, h_k, w_k) per scale in range; return them with their grids."""
        scales = (indices,) if isinstance(indices, Tensor) else tuple(indices)
        if len(scales) != len(self.patch_nums):
            raise ValueError(f"indices: got {len(scales)} scales, expected {len(self.patch_nums)}")
        for k, scale in enumerate(scales):
            check_indices(scale, self.num_embeddings, f"indices[{k}]")
            if scale.dim() != 3 or scale.shape[0] != scales[0].shape[0] or min(scale.shape[1:]) < 1:
                raise ValueError(
                    f"indices[{k}]: got shape {tuple(scale.shape)}, expected (B, h_k, w_k) with equal B and sides >= 1"
                )
        return scales, tuple((scale.shape[1], scale.shape[2]) for scale in scales)


class _Residuals:
    """Chooses codes by quantizing what the coarser scales left over, and remembers what it saw for learning."""

    def __init__(self, quantizer: CodebookQuantizer, f_BCHW: Tensor, grids: Grids, mask_BHW: Tensor | None):
        self.quantizer, self.f_BCHW, self.grids = quantizer, f_BCHW, grids
        self.valid_B1HW = None if mask_BHW is None else mask_BHW.unsqueeze(1).to(f_BCHW.dtype)
        self.vectors: list[Tensor] = []
        """Projected residual vectors of valid cells, one (n_k, C) a scale."""
        self.indices: list[Tensor] = []
        """The codes they chose, one (n_k,) a scale."""

    @torch.no_grad()
    def choose(self, k: int, f_hat_BCHW: Tensor) -> Tensor:
        """Indices (B, h_k, w_k) of the residual seen at scale k."""
        residual_BCHW = self.f_BCHW - f_hat_BCHW
        if self.valid_B1HW is None:
            z_BChw = to_grid(residual_BCHW, self.grids[k])
            valid_N = torch.ones(z_BChw[:, 0].numel(), dtype=torch.bool, device=z_BChw.device)
        else:
            # The mean over valid positions only; a cell without any is not valid itself / 只对有效位置取平均
            share_B1hw = to_grid(self.valid_B1HW, self.grids[k])
            z_BChw = to_grid(residual_BCHW * self.valid_B1HW, self.grids[k]) / share_B1hw.clamp(min=1e-12)
            valid_N = share_B1hw.reshape(-1) > 0
        z_ND = self.quantizer.project(to_rows(z_BChw))
        indices_N = self.quantizer.search(z_ND)
        self.vectors.append(z_ND[valid_N])
        self.indices.append(indices_N[valid_N])
        return indices_N.reshape(z_BChw.shape[0], *self.grids[k])

    def rows(self) -> tuple[Tensor, Tensor]:
        """All vectors (N, C) and indices (N,) of all scales."""
        return torch.cat(self.vectors), torch.cat(self.indices)


def _valid(f_BCHW: Tensor, mask_BHW: Tensor | None) -> Tensor:
    """Vectors at valid positions, one a row."""
    rows_ND = to_rows(f_BCHW)
    return rows_ND if mask_BHW is None else rows_ND[mask_BHW.reshape(-1)]
