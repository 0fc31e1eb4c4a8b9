"""VAR's interface: a tokenizer and its multi-scale quantizer under VAR's names, so that VAR code runs unchanged.

以 VAR 的名称提供分词器与多尺度量化器，VAR 的代码无需改动即可运行。

VAR has one codebook for all scales. If each scale has its own, VAR's trainer and plain sampler still work; mixtures of
codes (`more_smooth`) are refused, as they need a shared codebook.

Source: the interface of `vae_local` and `vae_local.quantize` in Tian et al. 2024 (arXiv 2404.02905). Argument names and
return values are VAR's; `Tokenizer` and `MultiScaleQuantizer` do the computation. Latents need not be square: scales
then have sides in proportion.

Legend: B images, C channels, H x W latent, h_k x w_k scale k, l_k = h_k * w_k, L the sum of all l_k.
图例：B 张图像，C 通道，H×W 潜变量，第 k 个尺度 h_k×w_k，l_k = h_k·w_k，L 为全部 l_k 之和。
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isqrt, prod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from smalti.checks import expect
from smalti.formats.arguments import check_arguments
from smalti.ops import proportional_grids
from smalti.quantizers import MultiScaleQuantizer, Quantizer
from smalti.tokenizers.base import Tokenizer, as_scales, dtype_of, in_range
from smalti.tokenizers.tokens import Grids, Tokens

PatchNums = Sequence[int | tuple[int, int] | list[int]]
"""Scales, coarse to fine: side, or height and width, of each."""


class VARTokenizer(Tokenizer):
    """A tokenizer with single-scale or multi-scale quantizer, and VAR's interface beside `encode` and `decode`.

    With a single scale the lists have one entry, and `quantize` is not available.
    """

    @property
    def Cvae(self) -> int:
        """Dimension of a code, under VAR's name."""
        return self.quantizer.embedding_dim

    @property
    def quantize(self) -> "VARQuantizer":
        """The multi-scale quantizer under VAR's names; not available with a single scale."""
        return VARQuantizer(self.quantizer)

    @torch.no_grad()
    def img_to_idxBl(self, inp_img_no_grad: Shaped[Tensor, "b ..."], v_patch_nums: PatchNums | None = None) -> "IdxBl":
        """Token indices of images (B, C, H, W), float in [-1, 1] or uint8: a list of int64 (B, l_k), coarse to fine.

        The list also holds the grids and the image size (`IdxBl`); for images that are not square they do not follow
        from the lengths.

        图像 → 各尺度的词元索引列表，由粗到细；列表还保存网格和图像大小。

        Args:
            inp_img_no_grad: the images.
            v_patch_nums: sides, or (h_k, w_k), of the scales of a multi-scale tokenizer; None: in proportion.
        """
        return IdxBl(self._scale_tokens(inp_img_no_grad, v_patch_nums))

    @torch.no_grad()
    def idxBl_to_img(
        self,
        ms_idx_Bl: Sequence[Shaped[Tensor, "b ..."]],
        same_shape: bool | None = None,
        last_one: bool = False,
        *,
        grids: Sequence[Sequence[int]] | None = None,
    ) -> Float[Tensor, "b c h w"] | list[Float[Tensor, "b c _ _"]]:
        """Images in [-1, 1] of token indices: the reconstructions of the forward pass in eval mode.

        `idxBl_to_img(indices)` returns the final image. With VAR's arguments it returns the same as VAR: the list of
        images after each scale, or with `last_one` only the last image.

        各尺度的词元索引 → 图像；带上 VAR 的参数时，返回值与 VAR 相同。

        Args:
            ms_idx_Bl: one (B, l_k) per scale, coarse to fine, as `img_to_idxBl` returns.
            same_shape: VAR's argument. True: all images have the full size. False: latent and images grow from scale to
                scale, an experiment of VAR's that its training never uses.
            last_one: VAR's argument; return only the last image.
            grids: (h_k, w_k) of each scale, or (h_k, w_k, *code_shape); required for a plain list of scales that are
                not square.
        """
        tokens = self._tokens(ms_idx_Bl, grids)
        if same_shape is None or (same_shape and last_one):
            return self.decode(tokens)
        if same_shape or len(tokens.indices) == 1:
            return self.progressive(tokens)
        self._checked(tokens)
        return self.embed_to_img(self.quantize.code_maps(tokens.indices), all_to_max_scale=False, last_one=last_one)

    @torch.no_grad()
    def embed_to_img(
        self, ms_h_BChw: Sequence[Float[Tensor, "b d _ _"]], all_to_max_scale: bool, last_one: bool = False
    ) -> Float[Tensor, "b c h w"] | list[Float[Tensor, "b c _ _"]]:
        """Images in [-1, 1] of code vectors (B, D, h_k, w_k): after each scale, or with `last_one` only the last.

        Args:
            ms_h_BChw: code vectors, or mixtures of them, coarse to fine.
            all_to_max_scale: as `same_shape` in `idxBl_to_img`.
            last_one: only the last image.
        """
        f_hats = self.quantize.embed_to_fhat(ms_h_BChw, all_to_max_scale)
        images = [self.fhat_to_img(f_hat) for f_hat in (f_hats[-1:] if last_one else f_hats)]
        return images[-1] if last_one else images

    def fhat_to_img(self, f_hat: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        """Images in [-1, 1] of quantized latents (B, D, h, w): decode and clamp."""
        size = (f_hat.shape[2] * self.stride, f_hat.shape[3] * self.stride)
        return self._image(f_hat.to(dtype_of(self.decoder)), size).clamp(-1, 1)

    @torch.no_grad()
    def img_to_reconstructed_img(
        self, x: Shaped[Tensor, "b ..."], v_patch_nums: PatchNums | None = None, last_one: bool = False
    ) -> Float[Tensor, "b c h w"] | list[Float[Tensor, "b c h w"]]:
        """Reconstructions of images (B, C, H, W) after each scale, or with `last_one` the final one."""
        tokens = self._scale_tokens(x, v_patch_nums)
        return self.decode(tokens) if last_one else self.progressive(tokens)

    @torch.no_grad()
    def idxBl_to_var_input(
        self, ms_idx_Bl: Sequence[Shaped[Tensor, "b ..."]], grids: Sequence[Sequence[int]] | None = None
    ) -> Float[Tensor, "b l d"]:
        """Input of a visual autoregressive generator: (B, L - l_1, D); for a single scale the codes (B, L, D).

        Arguments as in `idxBl_to_img`.

        各尺度的词元索引 → 自回归模型的（教师强制）输入。
        """
        return self.quantizer.var_input(self._checked(self._tokens(ms_idx_Bl, grids)))

    def _scale_tokens(self, image: Tensor, v_patch_nums: PatchNums | None) -> Tokens:
        """Tokens of float images at the requested scales."""
        z = self._latent(in_range(image))
        grids = None if v_patch_nums is None else as_grids(v_patch_nums)
        indices = self.quantizer.encode(z) if grids is None else self.quantize.encode(z, grids)
        size = (image.shape[2], image.shape[3])
        return Tokens(as_scales(indices), size, self.vocab_size, fingerprint=self._settled_fingerprint())

    def _tokens(self, ms_idx_Bl: Sequence[Tensor], grids: Sequence[Sequence[int]] | None) -> Tokens:
        if isinstance(ms_idx_Bl, IdxBl) and grids is None:
            return ms_idx_Bl.tokens()
        shapes = [tuple(scale.shape) for scale in ms_idx_Bl]
        if not shapes or any(len(shape) != 2 or shape[0] != shapes[0][0] or shape[1] < 1 for shape in shapes):
            raise ValueError(f"ms_idx_Bl: got shapes {shapes}, expected one (B, l_k) per scale with equal B")
        code_shape = self.quantizer.code_shape
        squares = (square_grid(length, code_shape, "ms_idx_Bl") for _, length in shapes)
        grids = [(*grid, *code_shape[len(grid) - 2 :]) for grid in grids or squares]
        if [prod(grid) for grid in grids] != [length for _, length in shapes]:
            raise ValueError(f"grids: got {grids}, expected grids of {[length for _, length in shapes]} tokens")
        image_size = (grids[-1][0] * self.stride, grids[-1][1] * self.stride)
        return Tokens.unflatten(torch.cat(list(ms_idx_Bl), dim=1), grids, image_size, self.vocab_size)


class IdxBl(list[Tensor]):
    """A list of (B, l_k) indices that also holds grids and image size."""

    def __init__(self, tokens: Tokens):
        super().__init__(numbered(tokens.indices))
        self._tokens = tokens

    def tokens(self) -> Tokens:
        """The current indices of the list as `Tokens`."""
        made = self._tokens
        tokens = Tokens.unflatten(torch.cat(list(self), dim=1), made.grids, made.image_size, made.vocab_size)
        return replace(tokens, fingerprint=made.fingerprint)


class VARQuantizer(nn.Module):
    """View of a `MultiScaleQuantizer` with VAR's names; it has no parameters of its own."""

    def __init__(self, quantizer: Quantizer):
        if not isinstance(quantizer, MultiScaleQuantizer):
            raise AttributeError(
                f"quantize: got {type(quantizer).__name__}, expected a multi-scale quantizer for VAR's interface"
            )
        super().__init__()
        self._quantizer = quantizer
        self.training = quantizer.training

    @property
    def vocab_size(self) -> int:
        """Number of codes V."""
        return self._quantizer.num_embeddings

    @property
    def Cvae(self) -> int:
        """Dimension of a code C."""
        return self._quantizer.embedding_dim

    @property
    def v_patch_nums(self) -> tuple[int, ...]:
        """Sides of the scales for the square latent of training."""
        return self._quantizer.patch_nums

    @property
    def beta(self) -> float:
        """Weight of the commitment term."""
        return self._quantizer.beta

    @property
    def embedding(self) -> nn.Module:
        """The codebook (V, C) as a layer: indices (B, l) to code vectors (B, l, C). No gradient reaches it.

        If scales have their own codebooks, the layer selects the right one and has no `weight` (`ScaleEmbedding`).
        """
        if self._quantizer.code_shape:
            raise ValueError(
                f"embedding: got {self._quantizer.code_shape} codes per position, expected one for VAR's interface"
            )
        codebook = self._quantizer.get_codebook().detach()
        if len(self._quantizer.quantizers) == 1:
            return nn.Embedding.from_pretrained(codebook, freeze=True)
        return ScaleEmbedding(codebook, self.v_patch_nums)

    def code_maps(self, indices: Sequence[Int64[Tensor, "b _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """Code vectors (B, C, h_k, w_k) of the indices (B, h_k, w_k) of all scales; not part of VAR's interface."""
        return [self._quantizer.scale_codes(k, scale) for k, scale in enumerate(indices)]

    @property
    def prog_si(self) -> int:
        """Always -1: VAR's progressive training of its transformer is not supported, as in VAR's tokenizer."""
        return -1

    @prog_si.setter
    def prog_si(self, value: int) -> None:
        """Accept the value that VAR's trainer sets without progressive training."""
        if value >= 0:
            raise ValueError(f"prog_si: got {value}, expected -1: progressive training is not supported")

    def encode(self, z: Float[Tensor, "b c h w"], grids: Grids) -> tuple[Int64[Tensor, "b _ _"], ...]:
        """Indices of a latent at the given scales."""
        return tuple(self._quantizer.encode(z, grids))

    @torch.no_grad()
    def f_to_idxBl_or_fhat(
        self, f_BChw: Float[Tensor, "b c h w"], to_fhat: bool, v_patch_nums: PatchNums | None = None
    ) -> list[Int64[Tensor, "b _"]] | list[Float[Tensor, "b c h w"]]:
        """Indices (B, l_k) of all scales of a latent (B, C, H, W), or with `to_fhat` f_hat after each scale."""
        grids = None if v_patch_nums is None else as_grids(v_patch_nums)
        indices = self._quantizer.encode(f_BChw, grids)
        return self._quantizer.decode_progressive(indices) if to_fhat else numbered(tuple(indices))

    def idxBl_to_var_input(self, gt_ms_idx_Bl: Sequence[Int64[Tensor, "b _"]]) -> Float[Tensor, "b l c"]:
        """Teacher-forcing input (B, L - l_1, C) of the indices (B, l_k) of all scales.

        Scales of a plain list must be square; a list from `img_to_idxBl` holds its grids.
        """
        if isinstance(gt_ms_idx_Bl, IdxBl):
            return self._quantizer.var_input(gt_ms_idx_Bl.tokens().indices)
        code_shape = self._quantizer.code_shape
        grids = [square_grid(scale.shape[1], code_shape, "gt_ms_idx_Bl") for scale in gt_ms_idx_Bl]
        scales = zip(gt_ms_idx_Bl, grids, strict=True)
        return self._quantizer.var_input(tuple(scale.reshape(-1, *grid) for scale, grid in scales))

    def get_next_autoregressive_input(
        self, si: int, SN: int, f_hat: Float[Tensor, "b c h w"], h_BChw: Float[Tensor, "b c hk wk"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c hn wn"]]:
        """One step of sampling: add the codes of scale `si` to f_hat, and resize the sum to the next scale.

        采样的一步：把尺度 `si` 的码字加到 f_hat，再缩放到下一个尺度。

        Args:
            si: the scale of the codes, from 0.
            SN: number of scales.
            f_hat: (B, C, H, W), the sum of the scales before; zeros for si = 0.
            h_BChw: (B, C, h_si, w_si) code vectors of scale si.

        Returns:
            The new f_hat (B, C, H, W), and f_hat at the grid of scale si + 1; at the last scale f_hat twice.
        """
        if len(self.v_patch_nums) != SN or not 0 <= si < SN:
            raise ValueError(
                f"si, SN: got {si}, {SN}, expected {len(self.v_patch_nums)} scales and si from 0 to {SN - 1}"
            )
        grids = proportional_grids(self.v_patch_nums, f_hat.shape[2], f_hat.shape[3])
        return self._quantizer.next_scale_input(si, f_hat, h_BChw, grids)

    def embed_to_fhat(
        self, ms_h_BChw: Sequence[Float[Tensor, "b c _ _"]], all_to_max_scale: bool = True, last_one: bool = False
    ) -> Float[Tensor, "b c h w"] | list[Float[Tensor, "b c _ _"]]:
        """f_hat of the code vectors (B, C, h_k, w_k) of all scales: after each scale, or with `last_one` only the last.

        Args:
            ms_h_BChw: code vectors, coarse to fine.
            all_to_max_scale: True: f_hat has the full size at every scale, as in training. False: f_hat grows with the
                scales, an experiment of VAR's.
            last_one: return only the last.
        """
        self._quantizer.check_number(len(ms_h_BChw), "ms_h_BChw")
        f_hats = list(self._accumulate(ms_h_BChw, all_to_max_scale))
        return f_hats[-1] if last_one else f_hats

    def _accumulate(self, ms_h_BChw: Sequence[Tensor], all_to_max_scale: bool) -> Iterator[Tensor]:
        size = ms_h_BChw[-1 if all_to_max_scale else 0].shape[2:]
        f_hat = torch.zeros(*ms_h_BChw[0].shape[:2], *size, device=ms_h_BChw[0].device)
        for k, h_BChw in enumerate(ms_h_BChw):
            if not all_to_max_scale and f_hat.shape[2:] != h_BChw.shape[2:]:
                f_hat = F.interpolate(f_hat, size=h_BChw.shape[2:], mode="bicubic")
            f_hat = self._quantizer.add(k, f_hat, h_BChw, len(ms_h_BChw))
            yield f_hat


class ScaleEmbedding(nn.Module):
    """Codebooks of several scales with the interface of VAR's single codebook: lookup of the tokens of one scale.

    Indices from `img_to_idxBl` and `f_to_idxBl_or_fhat` carry their scale. For other indices, such as a sampler's, the
    scale follows from the number of tokens at the image size of training.
    """

    codebooks: Float[Tensor, "scales v c"]
    """The codebook of each scale. Not named `weight`, else VAR's code would mix codes of different scales."""

    def __init__(self, codebooks_KVC: Float[Tensor, "scales v c"], patch_nums: Sequence[int]):
        super().__init__()
        self.register_buffer("codebooks", codebooks_KVC)
        self.lengths = [side * side for side in patch_nums]

    def forward(self, idx_Bl: Int64[Tensor, "b l"]) -> Float[Tensor, "b l c"]:
        """Code vectors of indices, from the codebook of their scale; ValueError if the scale is unknown."""
        k = getattr(idx_Bl, SCALE, None)
        if k is None:
            if self.lengths.count(idx_Bl.shape[1]) != 1:
                raise ValueError(
                    f"idx_Bl: got {idx_Bl.shape[1]} tokens, expected one of {self.lengths} as in training, "
                    "since each scale has its own codebook"
                )
            k = self.lengths.index(idx_Bl.shape[1])
        return F.embedding(idx_Bl, self.codebooks[k])

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                "weight: this tokenizer has one codebook per scale, but VAR's code mixes codes of a shared codebook; "
                "train with num_codebooks=1"
            )
        return super().__getattr__(name)


SCALE = "scale_number"
"""Attribute of index tensors that holds their scale."""


def numbered(scales: Sequence[Int64[Tensor, "b ..."]]) -> list[Int64[Tensor, "b _"]]:
    """Indices (B, *grid) of all scales, flat (B, l_k). Each tensor carries its scale; results of operations do not.

    The number of tokens is ambiguous: 2 x 2 is the second scale of one image and the first of an image twice as large.
    """
    flat = [scale.flatten(1) for scale in scales]
    for k, idx_Bl in enumerate(flat):
        setattr(idx_Bl, SCALE, k)
    return flat


def square_grid(length: int, code_shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Shape (side, side, *code_shape) of a square scale of `length` tokens.

    Raises:
        ValueError: `length` does not make a square.
    """
    side = isqrt(length // prod(code_shape))
    if side * side * prod(code_shape) != length:
        raise ValueError(f"{name}: got a scale of {length} tokens, which is not square; pass grids=((h_1, w_1), …) too")
    return (side, side, *code_shape)


def as_grids(v_patch_nums: PatchNums) -> Grids:
    """Heights and widths of scales; a single number means a square scale.

    >>> as_grids([1, (2, 3)])
    ((1, 1), (2, 3))
    """
    check_arguments(as_grids, {"v_patch_nums": v_patch_nums})
    grids = [(side, side) if isinstance(side, int) else tuple(side) for side in v_patch_nums]
    expect(all(len(grid) == 2 for grid in grids), "v_patch_nums", v_patch_nums, "a side or (height, width) per scale")
    return tuple((height, width) for height, width in grids)
