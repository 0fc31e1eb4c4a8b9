"""The residual multi-scale quantizer of VAR: from one token per image to one token per latent cell.

Source: Tian et al. 2024, "Visual Autoregressive Modeling" (arXiv 2404.02905), algorithms 1 and 2. There all scales
share one codebook; here each may have its own. Each scale quantizes the residual of the coarser scales:

    residual -> area-downsample -> nearest code -> bicubic-upsample -> convolve with φ -> add to f_hat

每个尺度量化较粗尺度留下的残差：缩小（面积平均）→ 最近码字 → 放大（双三次）→ φ 卷积 → 累加到 f_hat。

It wraps any pointwise quantizer (`base.py`), which does search and codebook update. This file holds the loop over the
scales; `scales.py` has φ and the residual at each scale. `ResidualQuantizer` refines values, this class refines
resolution: with equal sides and `phi_ratio=0` both are the same.
Training, encoding, decoding and generation share one step, `ops.add_scale`, and one loop over it, `_walk`.

Legend: B images, C channels, H x W latent, K scales, h_k x w_k grid of scale k, l_k = h_k * w_k, L = sum of l_k.
图例：B 张图像，C 通道，H×W 潜变量，K 个尺度，第 k 个尺度的网格 h_k×w_k，l_k = h_k·w_k，L 为总词元数。
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from smalti.checks import at_least, between, expect
from smalti.distributed import sum_over_processes
from smalti.formats.arguments import checked
from smalti.ops import add_scale, count_codes, proportional_grids, to_grid, without_autocast
from smalti.ops.multi_scale import Upsampling
from smalti.quantizers.base import (
    LARGEST_LISTED_CODEBOOK,
    Indices,
    PointwiseQuantizer,
    Quantizer,
    QuantizerOutput,
    average_terms,
    mean_square,
    whole_counts,
)
from smalti.quantizers.latents import (
    check_finite,
    check_indices,
    check_latent,
    from_vectors,
    marked,
    select,
    to_vectors,
)
from smalti.quantizers.scales import VAR_NUM_PHI, Phi, ScaleResiduals, phi_of_scale, to_map
from smalti.quantizers.vector import VectorQuantizer

Grids = tuple[tuple[int, int], ...]
Choose = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""Given scale k and f_hat of the scales before it: indices (B, h_k, w_k, *code_shape) and codes (B, C, h_k, w_k)."""


class Scale(NamedTuple):
    """Result of one scale in `_walk`."""

    indices: Tensor
    """Codes chosen at this scale, (B, h_k, w_k, *code_shape)."""
    f_hat_BCHW: Tensor
    """Latent accumulated up to and including this scale."""


@final
class MultiScaleQuantizer(Quantizer):
    """Quantize a latent (B, C, H, W) as token maps of growing size. 把潜变量量化为一组逐渐变大的词元图。

    Examples:
        >>> vq = MultiScaleQuantizer(num_embeddings=512, embedding_dim=32, patch_nums=(1, 2, 4, 8))
        >>> quantized, loss, indices = vq(torch.randn(2, 32, 8, 8))
        >>> [tuple(i.shape) for i in indices]
        [(2, 1, 1), (2, 2, 2), (2, 4, 4), (2, 8, 8)]
    """

    older_defaults: ClassVar = {"upsampling": "bicubic", "projected": "latent"}
    scale_usage: Float[Tensor, "scales *code k"] | None
    """Moving average of the count of each code at each scale, per training batch; None if the codebook is too large to
    be listed."""

    @checked
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        patch_nums: Sequence[int],
        beta: float | None = None,
        *,
        num_phi: int = VAR_NUM_PHI,
        phi_ratio: float = 0.5,
        num_codebooks: int = 1,
        quantizer: PointwiseQuantizer | None = None,
        upsampling: Upsampling = "bicubic",
        projected: Literal["latent", "residuals"] = "latent",
    ):
        """
        Args:
            num_embeddings: number of codes per codebook.
            embedding_dim: channels C of the latent.
            patch_nums: side lengths of the scales for the square latent of training, coarse to fine; the last is the
                latent's own side. Latents of other sizes get scales in proportion (`ops.proportional_grids`). A
                shared codebook also encodes and decodes at other numbers of scales, as VAR's does.
            beta: weight of the commitment term; None: that of the quantizer, or 0.25 if it has no such term.
            num_phi: number of φ. 1: shared by all scales; len(patch_nums): one per scale; in between: neighbouring
                scales share one. The default, VAR's, is also used for fewer scales.
            phi_ratio: weight of the convolution in φ, from 0 (no convolution) to 1.
            num_codebooks: number of codebooks. 1: shared by all scales (VAR); len(patch_nums): one per scale; in
                between: neighbouring scales share one.
            quantizer: quantizer of every scale; each codebook starts as a copy of it. None:
                `VectorQuantizer(num_embeddings, embedding_dim)`.
            upsampling: interpolation of the codes of coarse scales: "bicubic" (VAR) or "bilinear" (Infinity).
            projected: what the quantizer projects, such as BSQ to the unit sphere: the latent, once, or "residuals":
                the residual of every scale (Infinity).
        """
        super().__init__()
        at_least(1, num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        sides = tuple(patch_nums)
        growing = bool(sides) and list(sides) == sorted(sides)
        expect(growing and sides[0] >= 1, "patch_nums", sides, "integer side lengths of at least 1 in growing order")
        between(1, max(len(sides), VAR_NUM_PHI), num_phi=num_phi)
        between(1, len(sides), num_codebooks=num_codebooks)
        between(0, 1, phi_ratio=phi_ratio)
        quantizer = quantizer or VectorQuantizer(num_embeddings, embedding_dim)
        if (quantizer.num_embeddings, quantizer.embedding_dim) != (num_embeddings, embedding_dim):
            raise ValueError(
                f"quantizer: got {quantizer.num_embeddings} codes of dimension {quantizer.embedding_dim}, "
                f"expected {num_embeddings} of dimension {embedding_dim}"
            )
        beta = quantizer.weights().get("commitment", 0.25) if beta is None else beta
        at_least(0, beta=beta)
        self.num_embeddings, self.embedding_dim, self.patch_nums = num_embeddings, embedding_dim, sides
        self.code_shape, self.beta, self.upsampling, self.projected = quantizer.code_shape, beta, upsampling, projected
        self.num_phi, self.num_codebooks, self.phi_ratio = num_phi if phi_ratio > 0 else 1, num_codebooks, phi_ratio
        self.quantizers = nn.ModuleList(deepcopy(quantizer) if q else quantizer for q in range(num_codebooks))
        self.codebook_of_scale = [k * num_codebooks // len(sides) for k in range(len(sides))]
        self.phis = nn.ModuleList(Phi(embedding_dim, phi_ratio) for _ in range(num_phi if phi_ratio > 0 else 0))
        usage_shape = (len(sides), *self.code_shape, num_embeddings)
        listed = num_embeddings <= LARGEST_LISTED_CODEBOOK
        self.register_buffer("scale_usage", torch.zeros(usage_shape, dtype=torch.float32) if listed else None)

    # ---- the interface ------------------------------------------------------------------------------------------

    def forward(
        self,
        z: Shaped[Tensor, "b *c_h_w"],
        mask: Shaped[Tensor, "b ..."] | None = None,
        grids: Sequence[Sequence[int]] | None = None,
    ) -> QuantizerOutput:
        """See `Quantizer.forward`; indices are one (B, h_k, w_k, *code_shape) per scale, coarse to fine.

        The terms compare the latent with f_hat after every scale and average over scales, as in VAR's code:
        codebook = mean_k ‖f_hat_k − sg[z]‖² (it trains codes and φ), commitment = mean_k ‖sg[f_hat_k] − z‖². They
        replace the inner quantizer's distances; its entropies are kept, as means over scales. The distances of a soft
        inner quantizer are added too, as no other term trains its inner parts.
        每个尺度之后比较潜变量与 f_hat，再对尺度取平均：码本损失训练码字与 φ，承诺损失训练编码器。

        Args:
            z: latent (B, C, H, W).
            mask: True where a position of the latent is valid, (B, H, W).
            grids: sides (h_k, w_k) of each scale; None: in proportion to `patch_nums`.
        """
        check_latent(z, mask, self.embedding_dim)
        grids = self._grids_for(z, grids)
        with without_autocast(z):
            f_BCHW = self._project(z, mask)
            if self.training and len(grids) != len(self.patch_nums):
                raise ValueError(f"grids: got {len(grids)} scales, expected all {len(self.patch_nums)} in training")
            if self.learning and self.part(0).initialising:
                self._initialise(f_BCHW, grids, mask)
            residuals = self._residuals(f_BCHW, grids, mask)
            scales = list(self._walk(residuals.quantize, z.shape[0], grids, z.device))
            # Losses after every scale, valid positions only / 每个尺度之后都计算损失，仅限有效位置
            terms = self._terms(f_BCHW, [scale.f_hat_BCHW for scale in scales], residuals, mask)
            quantized_ND = self.part(0).estimate(to_vectors(f_BCHW), to_vectors(scales[-1].f_hat_BCHW))
            if self.learning:
                self._learn(residuals)
        return QuantizerOutput(
            quantized=to_map(quantized_ND, z).to(z.dtype),
            indices=tuple(scale.indices for scale in scales),
            terms=terms,
            weights=self.part(0).weights() | {"codebook": 1.0, "commitment": self.beta},
        )

    @torch.no_grad()
    def encode(self, z: Shaped[Tensor, "b *c_h_w"], grids: Sequence[Sequence[int]] | None = None) -> Indices:
        """Indices of a latent (B, C, H, W): one (B, h_k, w_k, *code_shape) per scale, coarse to fine."""
        check_latent(z, None, self.embedding_dim)
        check_finite(z)
        grids = self._grids_for(z, grids)
        with without_autocast(z):
            residuals = self._residuals(self._project(z), grids, None)
            walk = self._walk(residuals.search, z.shape[0], grids, z.device)
            return tuple(marked(scale.indices, z) for scale in walk)

    def decode(self, indices: Indices) -> Float[Tensor, "b c h w"]:
        """f_hat (B, C, H, W), in fp32, of the indices of all scales. 由各尺度的索引得到 f_hat。"""
        return self.decode_progressive(indices)[-1]

    def decode_progressive(self, indices: Indices) -> list[Float[Tensor, "b c h w"]]:
        """f_hat (B, C, H, W) after each scale, coarse to fine."""
        scales, grids = self._check_scales(indices)
        with without_autocast(scales[0]):
            walk = self._walk(
                lambda k, _: (scales[k], self.scale_codes(k, scales[k])), scales[0].shape[0], grids, scales[0].device
            )
            return [scale.f_hat_BCHW for scale in walk]

    def next_scale_input(
        self, k: int, f_hat_BCHW: Float[Tensor, "b c h w"], codes_BChw: Float[Tensor, "b c hk wk"], grids: Grids
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c hn wn"]]:
        """One step of a next-scale generator: add the codes of scale `k`, resize the sum to the grid of scale k + 1.

        Teacher forcing in training (`var_input`) and sampling both call this function.
        训练（教师强制）与采样共用的一步：加上第 k 个尺度的码字，再缩放到第 k + 1 个尺度的网格。

        Args:
            k: the scale of the codes, from 0.
            f_hat_BCHW: sum of the scales before k; zeros at k = 0.
            codes_BChw: code vectors of scale k.
            grids: (h_k, w_k) of all scales.

        Returns:
            The new f_hat (B, C, H, W), and f_hat at the grid of scale k + 1 (at the last scale: f_hat itself).
        """
        with without_autocast(f_hat_BCHW):
            f_hat_BCHW = self.add(k, f_hat_BCHW, codes_BChw, len(grids))
            return f_hat_BCHW, to_grid(f_hat_BCHW, grids[min(k + 1, len(grids) - 1)])

    def var_input(self, indices: Indices) -> Float[Tensor, "b l c"]:
        """Teacher-forcing input of a next-scale generator (B, L - l_1, C) of the indices of all scales.

        The vectors of scale k + 1 are f_hat up to scale k, resized to the grid of scale k + 1. The first scale has no
        input: a generator starts it from its class embedding. With a single scale the input is the code vectors in
        raster order (B, L, C).
        """
        scales, grids = self._check_scales(indices)
        if len(scales) == 1:
            return super().var_input(scales)
        inputs = []
        with without_autocast(scales[0]):
            f_hat_BCHW = self._zeros(scales[0].shape[0], grids, scales[0].device)
            for k in range(len(scales) - 1):
                f_hat_BCHW, input_BChw = self.next_scale_input(k, f_hat_BCHW, self.scale_codes(k, scales[k]), grids)
                inputs.append(input_BChw.flatten(2).transpose(1, 2))
        return torch.cat(inputs, dim=1)

    @property
    def quantizer(self) -> PointwiseQuantizer:
        """The inner quantizer of the first scale, as given to the constructor."""
        return self.part(0)

    def part(self, k: int) -> PointwiseQuantizer:
        """The quantizer of scale `k`."""
        quantizer = self.quantizers[self.codebook_of_scale[k] if len(self.quantizers) > 1 else 0]
        assert isinstance(quantizer, PointwiseQuantizer)
        return quantizer

    def phi(self, k: int, num_scales: int | None = None) -> nn.Module:
        """φ of scale `k` out of `num_scales`, by default as many as in training; the identity with `phi_ratio=0`."""
        num_scales = len(self.patch_nums) if num_scales is None else num_scales
        return self.phis[phi_of_scale(k, num_scales, len(self.phis))] if len(self.phis) else nn.Identity()

    def add(self, k: int, f_hat_BCHW: Tensor, codes_BChw: Tensor, num_scales: int) -> Tensor:
        """`ops.add_scale` with the φ of scale `k`."""
        return add_scale(f_hat_BCHW, codes_BChw, self.phi(k, num_scales), self.upsampling)

    def get_codebook(self) -> Float[Tensor, "*parts k d"]:
        """The shared codebook (num_embeddings, embedding_dim); with several codebooks one per scale, (scales,
        num_embeddings, embedding_dim)."""
        if len(self.quantizers) == 1:
            return self.part(0).get_codebook()
        return torch.stack([self.part(k).get_codebook() for k in range(len(self.patch_nums))])

    def code_counts(self) -> list[Int64[Tensor, " k"]] | None:
        """See `Quantizer.code_counts`: the counts of `scale_usage`."""
        if self.scale_usage is None or not self.scale_usage.any():
            return None
        return [whole_counts(usage_K) for usage_K in self.scale_usage.reshape(-1, self.num_embeddings)]

    # ---- the one loop over scales -------------------------------------------------------------------------------

    def _walk(self, choose: Choose, batch: int, grids: Grids, device: torch.device) -> Iterator[Scale]:
        """Coarse to fine: `choose(k, f_hat)` returns indices and codes of scale k; the codes are added to f_hat.

        由粗到细遍历各尺度：`choose(k, f_hat)` 给出第 k 个尺度的索引与码字，码字累加到 f_hat。
        """
        f_hat_BCHW = self._zeros(batch, grids, device)
        for k in range(len(grids)):
            # Codes of this scale: searched in encoding, given in decoding / 编码时搜索，解码时直接给出
            indices, codes_BChw = choose(k, f_hat_BCHW)
            # Up-sample, φ, accumulate / 放大、φ 卷积、累加：(B, C, h_k, w_k) -> (B, C, H, W)
            f_hat_BCHW = self.add(k, f_hat_BCHW, codes_BChw, len(grids))
            yield Scale(indices, f_hat_BCHW)

    def _terms(
        self, f_BCHW: Tensor, f_hats: list[Tensor], inner: ScaleResiduals, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """This quantizer's distances, and the terms of the inner quantizer that are kept."""
        valid_N = None if mask is None else mask.reshape(-1)
        f_ND, *f_hats_ND = (select(to_vectors(f), valid_N) for f in (f_BCHW, *f_hats))
        terms = average_terms(
            {"codebook": mean_square(f_hat, f_ND.detach()), "commitment": mean_square(f_hat.detach(), f_ND)}
            for f_hat in f_hats_ND
        )
        kept = average_terms(inner.entropies)
        if self.part(0).soft:
            kept = average_terms(inner.distances) | kept
        return terms | {name: terms.get(name, 0) + term for name, term in kept.items()}

    def _residuals(self, f_BCHW: Tensor, grids: Grids, mask: Tensor | None) -> ScaleResiduals:
        each = self.projected == "residuals"
        return ScaleResiduals([self.part(k) for k in range(len(grids))], f_BCHW, grids, mask, project=each)

    @torch.no_grad()
    def _initialise(self, f_BCHW: Tensor, grids: Grids, mask: Tensor | None) -> None:
        """Initialise each codebook, coarse to fine, from the residuals under the current codebooks."""
        for scales in self._scales_of_codebooks():
            residuals = self._residuals(f_BCHW, grids, mask)
            list(self._walk(residuals.quantize, f_BCHW.shape[0], grids, f_BCHW.device))
            self.part(scales[0]).initialise(residuals.joined(scales)[0])

    def _learn(self, residuals: ScaleResiduals) -> None:
        """Update each codebook once from all its scales, and count the usage of each scale. 更新码本与使用率。"""
        for scales in self._scales_of_codebooks():
            self.part(scales[0]).learn(*residuals.joined(scales))
        if self.scale_usage is None:
            return
        codes = self.scale_usage[0].numel()
        # One count for all levels or groups, each with its own range / 每层（组）各占一段计数
        offsets = torch.arange(0, codes, self.num_embeddings, device=self.scale_usage.device)
        counts = [count_codes(indices.reshape(-1, offsets.numel()) + offsets, codes) for indices in residuals.indices]
        joined = sum_over_processes(torch.stack(counts)).reshape(self.scale_usage.shape)
        self.scale_usage.lerp_(joined.float(), 1 - self.part(0).decay)

    def _project(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """The latent in fp32; projected to the space of the codes, unless each residual is."""
        # Padding may hold any value, NaN included, and φ reads neighbours: set it to zero / 填充位置置零，避免污染邻域
        f_BCHW = z.float() if mask is None else z.float().masked_fill(~mask.unsqueeze(1), 0)
        vectors_ND = to_vectors(f_BCHW)
        return to_map(self.part(0).project(vectors_ND) if self.projected == "latent" else vectors_ND, z)

    def scale_codes(self, k: int, indices: Int64[Tensor, "b h w *code"]) -> Float[Tensor, "b c h w"]:
        """Code vectors (B, C, h, w), as for `next_scale_input`, of the indices (B, h, w, *code_shape) of scale `k`."""
        return from_vectors(self.part(k).lookup(indices.flatten(0, 2)), tuple(indices.shape[:3]))

    def _scales_of_codebooks(self) -> list[list[int]]:
        """For each codebook the scales that use it, at least one."""
        return [[k for k, own in enumerate(self.codebook_of_scale) if own == q] for q in range(len(self.quantizers))]

    def _zeros(self, batch: int, grids: Grids, device: torch.device) -> Tensor:
        return torch.zeros(batch, self.embedding_dim, *grids[-1], dtype=torch.float32, device=device)

    # ---- checks -------------------------------------------------------------------------------------------------

    def check_number(self, num_scales: int, name: str) -> None:
        """Refuse another number of scales than in training, unless all scales share one codebook.

        φ depends on the relative position of a scale between first and last, defined for any number of scales. The
        codebook of a scale is not.
        """
        trained = len(self.patch_nums)
        shared = len(self.quantizers) == 1 < trained
        if num_scales < 1 or (num_scales != trained and not shared):
            raise ValueError(
                f"{name}: got {num_scales} scales, expected {trained}"
                + (" or another number of at least 1" if shared else " as in training, one codebook each")
            )

    def _grids_for(self, z: Tensor, grids: Sequence[Sequence[int]] | None) -> Grids:
        if z.dim() != 4 or min(z.shape[2:]) < 1:
            raise ValueError(f"z: got shape {tuple(z.shape)}, expected (B, C, H, W) with H, W >= 1")
        height, width = z.shape[2:]
        # In a trace sizes are tensors, but scales must be numbers: a trace is for images of one size
        size = (int(height), int(width)) if torch.jit.is_tracing() else (height, width)
        if grids is None:
            return proportional_grids(self.patch_nums, *size)
        if any(len(grid) != 2 for grid in grids):
            raise ValueError(f"grids: got {grids}, expected one (h_k, w_k) per scale")
        sides = tuple((h, w) for h, w in grids)
        fits = all(1 <= h <= size[0] and 1 <= w <= size[1] for h, w in sides)
        self.check_number(len(sides), "grids")
        if not fits or sides[-1] != size:
            raise ValueError(f"grids: got {sides}, expected scales of at most {size}, with {size} as the last")
        return sides

    def _check_scales(self, indices: Indices) -> tuple[tuple[Tensor, ...], Grids]:
        """Refuse indices other than one valid (B, h_k, w_k, *code_shape) per scale; return them with their grids."""
        scales = (indices,) if isinstance(indices, Tensor) else tuple(indices)
        self.check_number(len(scales), "indices")
        expected = ", ".join(["B", "h_k", "w_k", *map(str, self.code_shape)])
        for k, scale in enumerate(scales):
            check_indices(scale, self.num_embeddings, f"indices[{k}]")
            shape = tuple(scale.shape)
            fits = len(shape) >= 3 and shape[0] == scales[0].shape[0] and min(shape[1:3]) >= 1
            if not fits or not self.part(0).accepts(shape[3:]):
                raise ValueError(f"indices[{k}]: got shape {shape}, expected ({expected}) with equal B and sides >= 1")
        return scales, tuple((scale.shape[1], scale.shape[2]) for scale in scales)
