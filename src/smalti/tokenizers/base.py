"""What every image tokenizer is: encoder + quantizer + decoder, images of any size, tokens there and back.

Legend: B images, C image channels, H x W pixels, D embedding_dim, K scales, l_k tokens of scale k, L their sum.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from smalti.formats.saved_model import SavedModel
from smalti.ops.graphs import recording
from smalti.ops.pixels import to_float, to_uint8
from smalti.ops.waiting import reads_are_free
from smalti.quantizers import Indices, Quantizer, QuantizerOutput, with_quantizer
from smalti.tokenizers.tokens import Tokens
from smalti.tokenizers.var_interface import PatchNums, VARQuantizer, as_grids, numbered, square_grid


@dataclass(frozen=True)
class TokenizerOutput:
    """Result of a forward pass; unpacks as `reconstruction, vq_loss, indices`."""

    reconstruction: Float[Tensor, "b c h w"]
    """Images of the same size as the input; clamped to [-1, 1] in eval mode, as they come in train mode."""
    quantizer_output: QuantizerOutput
    """Quantized latent, indices and the loss terms by name."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.reconstruction, self.quantizer_output.loss, self.quantizer_output.indices))


Model = TypeVar("Model", bound="Tokenizer")


class Tokenizer(SavedModel):
    """An image tokenizer: image -> latent -> codes -> image.

    A subclass builds `encoder`, `quantizer` and `decoder` and says what it is (`config`). Saving and loading, also
    to and from the Hugging Face hub, come with `save_pretrained`, `from_pretrained` and `push_to_hub`.
    """

    hub_tag = "image-tokenizer"
    loader = "load"

    encoder: nn.Module
    """(B, C, H, W) to (B, D, H / stride, W / stride)."""
    quantizer: Quantizer
    decoder: nn.Module
    """(B, D, h, w) to (B, C, h * stride, w * stride)."""
    stride: int
    """Pixels a side of the area that one latent cell stands for."""
    image_channels: int
    """Channels C of images in and out."""
    image_range: tuple[float, float] = (-1.0, 1.0)
    """What -1 and 1 become for encoder and decoder; images in and out of a tokenizer always lie in [-1, 1]."""
    _seen: tuple[list[tuple[int, int, int]], str] = ([], "")
    """The tensors' places and versions when the fingerprint was last computed for tokens, and the fingerprint."""

    @classmethod
    def from_config(cls: type[Model], config: Mapping[str, Any]) -> Model:
        """See `SavedModel.from_config`; a quantizer may be built already."""
        arguments = {name: value for name, value in config.items() if name != "frozen"}
        model = super().from_config(with_quantizer(arguments))
        quantizers, frozen = model._quantizers(), config.get("frozen", [])
        if not isinstance(frozen, list) or any(name not in list(quantizers) for name in frozen):
            raise ValueError(f"frozen: got {frozen!r}, expected a list of names among {', '.join(quantizers)}")
        for name in frozen:
            quantizers[name].freeze()
        return model

    def training_state(self) -> dict[str, Any]:
        """The names of the frozen quantizers, where there are any."""
        frozen = [name for name, quantizer in self._quantizers().items() if quantizer.frozen]
        return {"frozen": frozen} if frozen else {}

    def _quantizers(self) -> dict[str, Quantizer]:
        """The quantizer and those inside it, by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Quantizer)}

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return self.quantizer.num_embeddings

    # ---- image -> tokens -> image -------------------------------------------------------------------------------

    def forward(self, image: Shaped[Tensor, "b ..."]) -> TokenizerOutput:
        """`reconstruction, vq_loss, indices = tokenizer(image)` for images (B, C, H, W) in [-1, 1], any size >= 1."""
        output = self.quantizer(self._latent(image))
        reconstruction = self._image(output.quantized, (image.shape[2], image.shape[3]))
        return TokenizerOutput(reconstruction, output)

    @torch.no_grad()
    def encode(self, image: Shaped[Tensor, "b ..."]) -> Tokens:
        """Tokens of images (B, C, H, W) of any size >= 1: uint8 from 0 to 255, or float from -1 to 1.

        Call `eval()` first where the network has batch normalisation, which else would learn from what it encodes.
        Tokens of a model in eval mode, in fp32 and not on a GPU bear its fingerprint.

        Raises:
            ValueError: another dtype, or floats outside [-1, 1]: the dtype declares the range, nothing is guessed. On a
                GPU the tokens of such an image are -1 instead, which nothing decodes.
        """
        pixels = to_float(image) if image.dtype == torch.uint8 else image
        indices = self._indices(_in_range(pixels))
        size = (image.shape[2], image.shape[3])
        return Tokens(indices, size, self.vocab_size, image.dtype, self._settled_fingerprint())

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Shaped[Tensor, "b c h w"]:
        """Images (B, C, *tokens.image_size): uint8 if the encoded images were, else float in [-1, 1].

        Raises:
            ValueError: tokens of another model or vocabulary, scales that do not belong to the image size, bad indices.
        """
        return self._finish(self.quantizer.decode(self._checked(tokens)), tokens)

    @torch.no_grad()
    def progressive(self, tokens: Tokens) -> list[Shaped[Tensor, "b c h w"]]:
        """The images after each scale, coarse to fine; the last is `decode(tokens)`. One for a single scale."""
        return [self._finish(z_q, tokens) for z_q in self.quantizer.decode_progressive(self._checked(tokens))]

    # ---- VAR's interface ----------------------------------------------------------------------------------------

    @property
    def Cvae(self) -> int:
        """Components of a code, under VAR's name."""
        return self.quantizer.embedding_dim

    @property
    def quantize(self) -> VARQuantizer:
        """The multi-scale quantizer under VAR's names; single-scale tokenizers have none."""
        return VARQuantizer(self.quantizer)

    @torch.no_grad()
    def img_to_idxBl(self, inp_img_no_grad: Shaped[Tensor, "b ..."], v_patch_nums: PatchNums | None = None) -> "IdxBl":
        """Token indices of images (B, C, H, W) in [-1, 1]: a list of int64 (B, l_k), coarse to fine.

        图像 → 各尺度的词元索引列表,由粗到细。The list also remembers the grids and the image size (`IdxBl`), which
        lengths alone do not tell when images are not square.

        Args:
            inp_img_no_grad: the images.
            v_patch_nums: sides, or (h_k, w_k), of the scales of a multi-scale tokenizer; default: in proportion.
        """
        return IdxBl(self._multi_scale_tokens(inp_img_no_grad, v_patch_nums))

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

        各尺度的词元索引 → 图像。`idxBl_to_img(indices)` is the final image. With VAR's arguments it is what VAR
        returns: the list of images after each scale, or with `last_one` the last of them.

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
        return self._image(f_hat.to(_dtype(self.decoder)), size).clamp(-1, 1)

    @torch.no_grad()
    def img_to_reconstructed_img(
        self, x: Shaped[Tensor, "b ..."], v_patch_nums: PatchNums | None = None, last_one: bool = False
    ) -> Float[Tensor, "b c h w"] | list[Float[Tensor, "b c h w"]]:
        """Reconstructions of images (B, C, H, W) after each scale, or with `last_one` the final one."""
        tokens = self._multi_scale_tokens(x, v_patch_nums)
        return self.decode(tokens) if last_one else self.progressive(tokens)

    @torch.no_grad()
    def idxBl_to_var_input(
        self, ms_idx_Bl: Sequence[Shaped[Tensor, "b ..."]], grids: Sequence[Sequence[int]] | None = None
    ) -> Float[Tensor, "b l d"]:
        """Input of a visual autoregressive generator: (B, L - l_1, D); (B, L, D), the codes, for a single scale.

        各尺度的词元索引 → 自回归模型的(教师强制)输入。Arguments as in `idxBl_to_img`.
        """
        return self.quantizer.var_input(self._checked(self._tokens(ms_idx_Bl, grids)))

    # ---- parts --------------------------------------------------------------------------------------------------

    def _latent(self, image: Tensor) -> Tensor:
        """Pad to a multiple of the stride, then encode: (B, C, H, W) to (B, D, ⌈H / stride⌉, ⌈W / stride⌉)."""
        if image.dim() != 4 or image.shape[1] != self.image_channels or min(image.shape[2:]) < 1:
            raise ValueError(
                f"image: got shape {tuple(image.shape)}, expected (B, {self.image_channels}, H, W) with H, W >= 1"
            )
        if not image.is_floating_point():
            raise ValueError(f"image: got dtype {image.dtype}, expected float (-1 to 1)")
        image = pad_to_multiple(image.to(_dtype(self.encoder)), self.stride)
        return self.encoder(_rescaled(image, (-1.0, 1.0), self.image_range))

    def _indices(self, image: Tensor, v_patch_nums: PatchNums | None = None) -> tuple[Tensor, ...]:
        """Indices of images in [-1, 1], one (B, *grid) per scale."""
        z = self._latent(image)
        if v_patch_nums is None:
            return _as_scales(self.quantizer.encode(z))
        return self.quantize.encode(z, as_grids(v_patch_nums))

    def _settled_fingerprint(self) -> str:
        """The fingerprint, computed again only where a tensor has changed since.

        "" in train mode, where it would change with the next step; in another number format than fp32, since casting
        makes no other model; and on a GPU, which the program would have to wait for.
        """
        tensors = [*self.parameters(), *self.buffers()]
        cast = any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in self.parameters())
        settled = not cast and all(reads_are_free(tensor) and not tensor.is_inference() for tensor in tensors)
        if self.training or not settled:
            return ""
        state = [(id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors]
        if self._seen[0] != state:
            self._seen = state, self.fingerprint
        return self._seen[1]

    def _multi_scale_tokens(self, image: Tensor, v_patch_nums: PatchNums | None) -> Tokens:
        indices = self._indices(_in_range(image), v_patch_nums)
        size = (image.shape[2], image.shape[3])
        return Tokens(indices, size, self.vocab_size, fingerprint=self._settled_fingerprint())

    def latent_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the latent, and of the last token map, of an image of that size."""
        height, width = image_size
        return -(-height // self.stride), -(-width // self.stride)

    def _image(self, z_q: Tensor, size: tuple[int, int]) -> Tensor:
        """Decode and crop the padding away; clamped in eval mode, when the result is an image, not a prediction."""
        image = _rescaled(self.decoder(z_q), self.image_range, (-1.0, 1.0))[:, :, : size[0], : size[1]]
        return image if self.training else image.clamp(-1, 1)

    def _finish(self, z_q: Tensor, tokens: Tokens) -> Tensor:
        image = self._image(z_q.to(_dtype(self.decoder)), tokens.image_size).clamp(-1, 1)
        return to_uint8(image) if tokens.image_dtype == torch.uint8 else image.to(tokens.image_dtype)

    def _checked(self, tokens: Tokens) -> Indices:
        """The indices as the quantizer wants them, after a look at vocabulary and image size."""
        if tokens.vocab_size != self.vocab_size:
            raise ValueError(f"tokens: made with a vocabulary of {tokens.vocab_size}, this model has {self.vocab_size}")
        own = self._settled_fingerprint() if tokens.fingerprint else ""
        if own and own != tokens.fingerprint:
            raise ValueError(f"tokens: made by the model {tokens.fingerprint[:12]}…, this one is {own[:12]}…")
        latent, last = self.latent_grid(tokens.image_size), tokens.grids[-1]
        # How many codes a position may have is the quantizer's to say: residual levels may be left out
        if last[:2] != latent or len(last) != 2 + len(self.quantizer.code_shape):
            raise ValueError(
                f"tokens: the last grid is {last}, an image of {tokens.image_size} has one of "
                f"{(*latent, *self.quantizer.code_shape)}"
            )
        return tokens.indices[0] if len(tokens.indices) == 1 else tokens.indices

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
            raise ValueError(f"grids: got {grids}, which do not hold {[length for _, length in shapes]} tokens")
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


def pad_to_multiple(image: Float[Tensor, "b c h w"], stride: int) -> Float[Tensor, "b c H W"]:
    """Pad below and right to multiples of `stride`: by reflection, or by the edge pixel where the side is too short."""
    for axis in (2, 3):
        missing = -image.shape[axis] % stride
        if recording() or missing:  # a graph for all sizes may not ask whether this one needs it
            padding = (0, 0, 0, missing) if axis == 2 else (0, missing, 0, 0)
            image = F.pad(image, padding, mode="reflect" if missing < image.shape[axis] else "replicate")
    return image


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters(), torch.empty(0)).dtype


def _rescaled(image: Tensor, source: tuple[float, float], target: tuple[float, float]) -> Tensor:
    """Map the interval `source` to the interval `target`."""
    if source == target:
        return image
    factor = (target[1] - target[0]) / (source[1] - source[0])
    return (image - source[0]) * factor + target[0]


def _as_scales(indices: Indices) -> tuple[Tensor, ...]:
    return (indices,) if isinstance(indices, Tensor) else tuple(indices)


def _in_range(image: Tensor) -> Tensor:
    """A float image, or a complaint: the range is declared by the dtype, not guessed from the values."""
    if not image.is_floating_point():
        raise ValueError(f"image: got dtype {image.dtype}, expected uint8 (0 to 255) or float (-1 to 1)")
    if recording() or image.numel() == 0:
        return image
    if not reads_are_free(image):  # NaN has no token (`quantizers.base.marked`), and nobody waits
        inside_B = (image.abs() <= 1.001).flatten(1).all(dim=1)
        return torch.where(inside_B.reshape(-1, 1, 1, 1), image, torch.nan)
    low, high = (float(value) for value in image.aminmax())
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"image: float values from {low:.4g} to {high:.4g}, expected -1 to 1 (or uint8, 0 to 255)")
    return image
