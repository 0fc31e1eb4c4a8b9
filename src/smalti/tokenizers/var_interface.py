"""VAR's interface: a tokenizer and its multi-scale quantizer under VAR's names, so that VAR code runs unchanged.

VAR has one codebook for all scales. Where each scale has its own, VAR's trainer and plain sampler still work; what
mixes codes (`more_smooth`) is refused, as there is no one codebook to mix.

Source: the interface of `vae_local` and `vae_local.quantize` in Tian et al. 2024 (arXiv 2404.02905): argument names and
return values are VAR's, the work is done by `Tokenizer` and `MultiScaleQuantizer`. Latents that are not square work
too: the scales follow in proportion.

Legend: B images, C channels, H x W latent, h_k x w_k scale k, l_k = h_k * w_k, L the sum of all l_k.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isqrt, prod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from smalti.ops import add_scale, proportional_grids
from smalti.quantizers import MultiScaleQuantizer, Quantizer
from smalti.tokenizers.base import Tokenizer, as_scales, dtype_of, in_range
from smalti.tokenizers.tokens import Grids, Tokens

PatchNums = Sequence[int | tuple[int, int] | list[int]]
"""Scales, coarse to fine: the side of each, or its height and width."""


class VARTokenizer(Tokenizer):
    """A tokenizer whose quantizer may have scales, with VAR's interface beside `encode` and `decode`.

    With one scale the lists have one entry, and there is no `quantize`.
    """

    @property
    def Cvae(self) -> int:
        """Components of a code, under VAR's name."""
        return self.quantizer.embedding_dim

    @property
    def quantize(self) -> "VARQuantizer":
        """The multi-scale quantizer under VAR's names; where there is one scale there is none."""
        return VARQuantizer(self.quantizer)

    @torch.no_grad()
    def img_to_idxBl(self, inp_img_no_grad: Shaped[Tensor, "b ..."], v_patch_nums: PatchNums | None = None) -> "IdxBl":
        """Token indices of images (B, C, H, W) in [-1, 1]: a list of int64 (B, l_k), coarse to fine.

        The list also remembers the grids and the image size (`IdxBl`), which lengths alone do not tell when images are
        not square.

        图像 → 各尺度的词元索引列表，由粗到细；列表还记得网格和图像大小。

        Args:
            inp_img_no_grad: the images.
            v_patch_nums: sides, or (h_k, w_k), of the scales of a multi-scale tokenizer; default: in proportion.
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
        """Images in [-1, 1] of token indices: what the forward pass reconstructs in eval mode.

        `idxBl_to_img(indices)` is the final image. With VAR's arguments it is what VAR returns: the list of images
        after each scale, or with `last_one` the last of them.

        各尺度的词元索引 → 图像；带上 VAR 的参数时，返回值与 VAR 相同。

        Args:
            ms_idx_Bl: one (B, l_k) per scale, coarse to fine, as `img_to_idxBl` returns.
            same_shape: VAR's; True: all images have the full size. False, an experiment of VAR's that its training
                never does: the latent grows from scale to scale, and the images with it.
            last_one: VAR's; only the last image.
            grids: (h_k, w_k) of each scale, or (h_k, w_k, *code_shape); needed for a plain list whose scales are not
                square.
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
        """Images in [-1, 1] after each scale, or with `last_one` the last, of code vectors (B, D, h_k, w_k).

        Args:
            ms_h_BChw: code vectors, or mixtures of them, coarse to fine.
            all_to_max_scale: as `same_shape` in `idxBl_to_img`.
            last_one: only the last image.
        """
        f_hats = self.quantize.embed_to_fhat(ms_h_BChw, all_to_max_scale)
        images = [self.fhat_to_img(f_hat) for f_hat in (f_hats[-1:] if last_one else f_hats)]
        return images[-1] if last_one else images

    def fhat_to_img(self, f_hat: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        """Images in [-1, 1] of quantized latents (B, D, h, w): the decoder and a clamp."""
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
        """Input of a visual autoregressive generator: (B, L - l_1, D); (B, L, D), the codes, for a single scale.

        Arguments as in `idxBl_to_img`.

        各尺度的词元索引 → 自回归模型的（教师强制）输入。
        """
        return self.quantizer.var_input(self._checked(self._tokens(ms_idx_Bl, grids)))

    def _scale_tokens(self, image: Tensor, v_patch_nums: PatchNums | None) -> Tokens:
        """Tokens of float images, at the scales that are asked for."""
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
            raise ValueError(f"grids: got {grids}, expected such of {[length for _, length in shapes]} tokens")
        image_size = (grids[-1][0] * self.stride, grids[-1][1] * self.stride)
        return Tokens.unflatten(torch.cat(list(ms_idx_Bl), dim=1), grids, image_size, self.vocab_size)


class IdxBl(list[Tensor]):
    """A list of (B, l_k) indices that remembers the grids and the image size it came from."""

    def __init__(self, tokens: Tokens):
        super().__init__(numbered(tokens.indices))
        self._tokens = tokens

    def tokens(self) -> Tokens:
        """The tokens as maps, with the indices that the list holds now."""
        made = self._tokens
        tokens = Tokens.unflatten(torch.cat(list(self), dim=1), made.grids, made.image_size, made.vocab_size)
        return replace(tokens, fingerprint=made.fingerprint)


class VARQuantizer(nn.Module):
    """View of a `MultiScaleQuantizer`; its parameters are that quantizer's, it adds none."""

    def __init__(self, quantizer: Quantizer):
        if not isinstance(quantizer, MultiScaleQuantizer):
            raise AttributeError(f"quantize: VAR's interface needs a multi-scale quantizer, this is {type(quantizer)}")
        super().__init__()
        self._quantizer = quantizer
        self.training = quantizer.training

    @property
    def vocab_size(self) -> int:
        """Number of codes V."""
        return self._quantizer.num_embeddings

    @property
    def Cvae(self) -> int:
        """Components of a code C."""
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

        Where scales have codebooks of their own it finds the right one and has no `weight` (`ScaleEmbedding`).
        """
        if self._quantizer.code_shape:
            raise ValueError(
                f"embedding: VAR's code knows one code per position, this quantizer has {self._quantizer.code_shape}"
            )
        codebook = self._quantizer.get_codebook().detach()
        if len(self._quantizer.quantizers) == 1:
            return nn.Embedding.from_pretrained(codebook, freeze=True)
        return ScaleEmbedding(codebook, self.v_patch_nums)

    def code_maps(self, indices: Sequence[Int64[Tensor, "b _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """Code vectors (B, C, h_k, w_k) of the indices (B, h_k, w_k) of all scales; not of VAR's interface."""
        return [self._quantizer.scale_codes(k, scale) for k, scale in enumerate(indices)]

    @property
    def prog_si(self) -> int:
        """Always -1: VAR's progressive training of its transformer is not supported, as in VAR's tokenizer."""
        return -1

    @prog_si.setter
    def prog_si(self, value: int) -> None:
        """Accept what VAR's trainer sets while it trains plainly."""
        if value >= 0:
            raise ValueError(f"prog_si: got {value}, expected -1: progressive training is not supported")

    def encode(self, z: Float[Tensor, "b c h w"], grids: Grids) -> tuple[Int64[Tensor, "b _ _"], ...]:
        """Indices of a latent at the given scales."""
        return tuple(self._quantizer.encode(z, grids))

    @torch.no_grad()
    def f_to_idxBl_or_fhat(
        self, f_BChw: Float[Tensor, "b c h w"], to_fhat: bool, v_patch_nums: PatchNums | None = None
    ) -> list[Int64[Tensor, "b _"]] | list[Float[Tensor, "b c h w"]]:
        """Of a latent (B, C, H, W) the indices (B, l_k) of all scales, or with `to_fhat` f_hat after each scale."""
        grids = None if v_patch_nums is None else as_grids(v_patch_nums)
        indices = self._quantizer.encode(f_BChw, grids)
        return self._quantizer.decode_progressive(indices) if to_fhat else numbered(tuple(indices))

    def idxBl_to_var_input(self, gt_ms_idx_Bl: Sequence[Int64[Tensor, "b _"]]) -> Float[Tensor, "b l c"]:
        """Teacher-forcing input (B, L - l_1, C) of the indices (B, l_k) of all scales.

        Scales of a plain list are taken to be square; a list from `img_to_idxBl` knows its own.
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
        """One step of sampling: add scale `si` of `SN` to f_hat; f_hat, and its look at the next scale.

        Args:
            si: the scale whose codes are given, from 0.
            SN: number of scales.
            f_hat: (B, C, H, W) what the scales before add up to; zeros at first.
            h_BChw: (B, C, h_si, w_si) code vectors of scale si.

        Returns:
            The new f_hat (B, C, H, W), and that seen at scale si + 1; at the last scale f_hat twice.
        """
        if len(self.v_patch_nums) != SN or not 0 <= si < SN:
            raise ValueError(f"si, SN: got scale {si} of {SN}, expected one of {len(self.v_patch_nums)}")
        grids = proportional_grids(self.v_patch_nums, f_hat.shape[2], f_hat.shape[3])
        return self._quantizer.next_scale_input(si, f_hat, h_BChw, grids)

    def embed_to_fhat(
        self, ms_h_BChw: Sequence[Float[Tensor, "b c _ _"]], all_to_max_scale: bool = True, last_one: bool = False
    ) -> Float[Tensor, "b c h w"] | list[Float[Tensor, "b c _ _"]]:
        """f_hat after each scale, or with `last_one` the last, of the code vectors (B, C, h_k, w_k) of all scales.

        Args:
            ms_h_BChw: code vectors, coarse to fine.
            all_to_max_scale: True as in training: every f_hat has the full size. False: it grows with the scales, an
                experiment of VAR's.
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
            f_hat = add_scale(f_hat, h_BChw, self._quantizer.phi(k, len(ms_h_BChw)))
            yield f_hat


class ScaleEmbedding(nn.Module):
    """Codebooks of several scales, looked up as VAR's code looks up its only one: with the tokens of one scale.

    Indices from `img_to_idxBl` and `f_to_idxBl_or_fhat` know their scale. Of others, such as a sampler's, the number
    says which: that of a scale of the image size of training.
    """

    codebooks: Float[Tensor, "scales v c"]
    """The codebook of each scale. Not called `weight`: VAR's code would mix codes of one scale with another's."""

    def __init__(self, codebooks_KVC: Float[Tensor, "scales v c"], patch_nums: Sequence[int]):
        super().__init__()
        self.register_buffer("codebooks", codebooks_KVC)
        self.lengths = [side * side for side in patch_nums]

    def forward(self, idx_Bl: Int64[Tensor, "b l"]) -> Float[Tensor, "b l c"]:
        """Code vectors of the scale that the indices belong to; ValueError if that cannot be told."""
        k = getattr(idx_Bl, SCALE, None)
        if k is None:
            if self.lengths.count(idx_Bl.shape[1]) != 1:
                raise ValueError(
                    f"idx_Bl: got {idx_Bl.shape[1]} tokens, but the scales of training have {self.lengths} and each "
                    "its own codebook"
                )
            k = self.lengths.index(idx_Bl.shape[1])
        return F.embedding(idx_Bl, self.codebooks[k])

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                "weight: this tokenizer has a codebook for each scale; VAR's code mixes codes of one codebook for all, "
                "which num_codebooks=1 trains"
            )
        return super().__getattr__(name)


SCALE = "scale_number"
"""Attribute of index tensors that know their scale."""


def numbered(scales: Sequence[Int64[Tensor, "b ..."]]) -> list[Int64[Tensor, "b _"]]:
    """Indices (B, *grid) of all scales, flat (B, l_k); each remembers its scale until an operation makes another of it.

    The number of tokens does not tell it: 2 x 2 are the second scale of one image and the first of one twice as large.
    """
    flat = [scale.flatten(1) for scale in scales]
    for k, idx_Bl in enumerate(flat):
        setattr(idx_Bl, SCALE, k)
    return flat


def square_grid(length: int, code_shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Shape (side, side, *code_shape) of a square scale of so many tokens.

    Raises:
        ValueError: there is none.
    """
    side = isqrt(length // prod(code_shape))
    if side * side * prod(code_shape) != length:
        raise ValueError(
            f"{name}: got a scale of {length} tokens, which is not square: expected grids=((h_1, w_1), …) beside it"
        )
    return (side, side, *code_shape)


def as_grids(patch_nums: PatchNums) -> Grids:
    """Heights and widths of scales that may be given by their side alone.

    >>> as_grids([1, (2, 3)])
    ((1, 1), (2, 3))
    """
    return tuple((side, side) if isinstance(side, int) else (int(side[0]), int(side[1])) for side in patch_nums)
