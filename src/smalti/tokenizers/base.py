"""The interface of all image tokenizers: encoder + quantizer + decoder, for images of any size.

所有图像分词器的接口：编码器 + 量化器 + 解码器，适用于任意大小的图像。

Legend: B images, C image channels, H x W pixels, h x w latent, D embedding_dim.
图例：B 张图像，C 个图像通道，H×W 像素，h×w 潜变量，D 为 embedding_dim。
"""

import inspect
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from smalti.checks import expect, is_a
from smalti.formats.plain import to_plain
from smalti.models import SavedModel
from smalti.ops.graphs import recording
from smalti.ops.pixels import to_float, to_uint8
from smalti.ops.waiting import reads_are_free
from smalti.quantizers import BinaryQuantizer, Indices, Quantizer, QuantizerOutput, with_quantizer
from smalti.tokenizers.tokens import Tokens


@dataclass(frozen=True)
class TokenizerOutput:
    """Result of a forward pass; unpacks as `reconstruction, vq_loss, indices`."""

    reconstruction: Float[Tensor, "b c h w"]
    """Images of the same size as the input; clamped to [-1, 1] in eval mode only."""
    quantizer_output: QuantizerOutput
    """Quantized latent, indices and the loss terms by name."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.reconstruction, self.quantizer_output.loss, self.quantizer_output.indices))


Model = TypeVar("Model", bound="Tokenizer")

IN_QUANTIZER = ("patch_nums", "num_codebooks")
"""Constructor arguments that only describe the default quantizer."""


class Tokenizer(SavedModel):
    """An image tokenizer: image -> latent -> codes -> image.

    A subclass builds `encoder`, `quantizer` and `decoder` and keeps each constructor argument as the attribute of its
    name, or in `sizes`. A subclass with multi-scale quantizers also has VAR's interface (`var_interface.py`).
    `save_pretrained`, `from_pretrained` and `push_to_hub` save and load models, also on the Hugging Face hub.

    图像分词器：图像 → 潜变量 → 码字 → 图像。
    """

    hub_tag = "image-tokenizer"
    loader = "load"

    encoder: nn.Module
    """(B, C, H, W) to (B, D, H / stride, W / stride)."""
    quantizer: Quantizer
    decoder: nn.Module
    """(B, D, h, w) to (B, C, h * stride, w * stride)."""
    stride: int
    """Side in pixels of the area that one latent cell covers."""
    image_channels: int
    """Channels C of input and output images."""
    image_range: tuple[float, float] = (-1.0, 1.0)
    """Value range of encoder input and decoder output; the tokenizer's own images always lie in [-1, 1]."""
    sizes: Mapping[str, Any] = {}
    """Constructor arguments that describe networks: `encoder` is the network, `sizes["encoder"]` its sizes."""
    source: Mapping[str, Any] | None = None
    """Origin of published weights: family, url, licence."""
    _seen: tuple[list[tuple[int, int, float]], str] = ([], "")
    """Identity, version and sum of each tensor when the fingerprint was computed last, and the fingerprint."""

    @abstractmethod
    def __init__(self) -> None:
        """Build the parts and keep the arguments."""
        super().__init__()

    @classmethod
    def from_config(cls: type[Model], config: Mapping[str, Any]) -> Model:
        """See `SavedModel.from_config`; the quantizer may already be an object."""
        arguments = {name: value for name, value in config.items() if name != "frozen"}
        model = super().from_config(with_quantizer(arguments))
        quantizers, frozen = model._quantizers(), config.get("frozen", [])
        if not isinstance(frozen, list) or any(name not in list(quantizers) for name in frozen):
            raise ValueError(f"frozen: got {frozen!r}, expected a list of names among {', '.join(quantizers)}")
        for name in frozen:
            quantizers[name].freeze()
        return model

    def config(self) -> dict[str, Any]:
        """Constructor arguments in plain JSON types: the names of its signature, the values of `sizes` or attributes.

        Without the arguments of `chosen_quantizer` that the quantizer's own configuration contains.
        """
        names = [name for name in inspect.signature(type(self)).parameters if name not in IN_QUANTIZER]
        return {name: to_plain(self.sizes[name] if name in self.sizes else getattr(self, name)) for name in names}

    def training_state(self) -> dict[str, Any]:
        """The names of the frozen quantizers, if there are any."""
        frozen = [name for name, quantizer in self._quantizers().items() if quantizer.frozen]
        return {"frozen": frozen} if frozen else {}

    def _quantizers(self) -> dict[str, Quantizer]:
        """The quantizer and its inner quantizers, by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Quantizer)}

    @property
    def _bitwise(self) -> bool:
        """Whether tokens are single bits."""
        return any(isinstance(part, BinaryQuantizer) and part.bitwise for part in self.quantizer.modules())

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return self.quantizer.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Channels of the latent and dimension of a code."""
        return self.quantizer.embedding_dim

    # ---- image -> tokens -> image -------------------------------------------------------------------------------

    def forward(self, image: Shaped[Tensor, "b ..."]) -> TokenizerOutput:
        """`reconstruction, vq_loss, indices = tokenizer(image)` for images (B, C, H, W) in [-1, 1], any size >= 1.

        训练用的前向传播：返回重建、量化损失与索引。
        """
        output = self.quantizer(self._latent(image))
        reconstruction = self._image(output.quantized, (image.shape[2], image.shape[3]))
        return TokenizerOutput(reconstruction, output)

    @torch.no_grad()
    def encode(self, image: Shaped[Tensor, "b ..."]) -> Tokens:
        """Tokens of images (B, C, H, W) of any size >= 1: uint8 from 0 to 255, or float from -1 to 1.

        Call `eval()` first if the network has batch normalisation; in train mode its statistics change in `encode`.
        Tokens carry the model's fingerprint if the model is in eval mode, in fp32 and not on a GPU.

        图像 → 词元。uint8 的范围是 0 到 255，浮点数的范围是 -1 到 1。

        Raises:
            ValueError: another dtype, or floats outside [-1, 1]; the range follows from the dtype and is not guessed.
                On a GPU the tokens of such an image are -1 instead, and `decode` refuses them.
        """
        indices = as_scales(self.quantizer.encode(self._latent(in_range(image))))
        if self._bitwise:
            indices = tuple(bits.to(torch.uint8) for bits in indices)
        size = (image.shape[2], image.shape[3])
        return Tokens(indices, size, self.vocab_size, image.dtype, self._settled_fingerprint())

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Shaped[Tensor, "b c h w"]:
        """Images (B, C, *tokens.image_size): uint8 if the encoded images were uint8, else float in [-1, 1].

        词元 → 图像。

        Raises:
            ValueError: tokens of another model or vocabulary size, scales that do not match the image size, or invalid
                indices.
        """
        return self._finish(self.quantizer.decode(self._checked(tokens)), tokens)

    @torch.no_grad()
    def progressive(self, tokens: Tokens, scales: Sequence[int] | None = None) -> list[Shaped[Tensor, "b c h w"]]:
        """Images after each scale, coarse to fine; the last equals `decode(tokens)`. One image for a single scale.

        With `scales` only the images after these scales, counted from 0.
        """
        latents = self.quantizer.decode_progressive(self._checked(tokens))
        return [self._finish(latents[k], tokens) for k in (range(len(latents)) if scales is None else scales)]

    # ---- parts --------------------------------------------------------------------------------------------------

    def _latent(self, image: Tensor) -> Tensor:
        """Pad to a multiple of the stride, then encode: (B, C, H, W) to (B, D, ⌈H / stride⌉, ⌈W / stride⌉)."""
        is_a(Tensor, image=image)
        if image.dim() != 4 or image.shape[1] != self.image_channels or min(image.shape[2:]) < 1:
            raise ValueError(
                f"image: got shape {tuple(image.shape)}, expected (B, {self.image_channels}, H, W) with H, W >= 1"
            )
        if not image.is_floating_point():
            raise ValueError(f"image: got dtype {image.dtype}, expected a floating-point dtype (-1 to 1)")
        image = pad_to_multiple(image.to(dtype_of(self.encoder)), self.stride)
        return self.encoder(_rescaled(image, (-1.0, 1.0), self.image_range))

    def _settled_fingerprint(self) -> str:
        """The fingerprint, computed again only if a tensor has changed, also through `.data`.

        "" in train mode, as the next step changes it; in other number formats than fp32, as the fingerprint is that of
        the fp32 weights; and on a GPU, to avoid waiting for the device.
        """
        tensors = [*self.parameters(), *self.buffers()]
        cast = any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in self.parameters())
        settled = not cast and all(reads_are_free(tensor) and not tensor.is_inference() for tensor in tensors)
        if self.training or not settled:
            return ""
        # `.data` changes a tensor but not its version; its sum is quick / 经 `.data` 的修改不改版本号，故再看总和
        state = [(id(tensor), tensor._version, float(tensor.detach().sum())) for tensor in tensors]
        if self._seen[0] != state:
            self._seen = state, self.fingerprint
        return self._seen[1]

    def latent_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the latent (equal to the last token map) for an image size."""
        height, width = image_size
        return -(-height // self.stride), -(-width // self.stride)

    def _image(self, z_q: Tensor, size: tuple[int, int]) -> Tensor:
        """Decode a latent and crop the padding; in eval mode clamp to [-1, 1]."""
        image = _rescaled(self.decoder(z_q), self.image_range, (-1.0, 1.0))[:, :, : size[0], : size[1]]
        return image if self.training else image.clamp(-1, 1)

    def _finish(self, z_q: Tensor, tokens: Tokens) -> Tensor:
        image = self._image(z_q.to(dtype_of(self.decoder)), tokens.image_size).clamp(-1, 1)
        return to_uint8(image) if tokens.image_dtype == torch.uint8 else image.to(tokens.image_dtype)

    def _checked(self, tokens: Tokens) -> Indices:
        """The indices in the form of the quantizer, after checks of vocabulary and image size."""
        if tokens.vocab_size != self.vocab_size:
            raise ValueError(
                f"tokens: got vocabulary size {tokens.vocab_size}, expected {self.vocab_size} as in this model"
            )
        own = self._settled_fingerprint() if tokens.fingerprint else ""
        if own and own != tokens.fingerprint:
            raise ValueError(
                f"tokens: got those of model {tokens.fingerprint[:12]}…, expected those of this model, {own[:12]}…"
            )
        latent, last = self.latent_grid(tokens.image_size), tokens.grids[-1]
        # The quantizer checks the number of codes per position: residual levels may be left out
        if last[:2] != latent or len(last) != 2 + len(self.quantizer.code_shape):
            raise ValueError(
                f"tokens: got {last} as the last grid, expected {(*latent, *self.quantizer.code_shape)} for an image "
                f"of {tokens.image_size}"
            )
        indices = tuple(scale.long() for scale in tokens.indices)
        return indices[0] if len(indices) == 1 else indices


def check_strides(encoder: int, decoder: int) -> None:
    """Refuse a decoder with another stride than the encoder."""
    if encoder != decoder:
        raise ValueError(f"decoder: got stride {decoder}, expected the encoder's {encoder}")


def growing(image_range: Sequence[float]) -> tuple[float, float]:
    """A range of values as two growing numbers; refuses anything else."""
    good = len(image_range) == 2 and image_range[0] < image_range[1]
    expect(good, "image_range", tuple(image_range), "two growing numbers such as (-1, 1)")
    return float(image_range[0]), float(image_range[1])


def pad_to_multiple(image: Float[Tensor, "b c h w"], stride: int) -> Float[Tensor, "b c H W"]:
    """Pad bottom and right to multiples of `stride`: by reflection, or by edge pixels where the side is too short."""
    for axis in (2, 3):
        missing = -image.shape[axis] % stride
        if recording() or missing:  # a graph for all sizes cannot depend on whether this size needs padding
            padding = (0, 0, 0, missing) if axis == 2 else (0, missing, 0, 0)
            image = F.pad(image, padding, mode="reflect" if missing < image.shape[axis] else "replicate")
    return image


def dtype_of(network: nn.Module) -> torch.dtype:
    """The dtype of the weights."""
    return next(network.parameters(), torch.empty(0)).dtype


def _rescaled(image: Tensor, source: tuple[float, float], target: tuple[float, float]) -> Tensor:
    """Map the interval `source` to the interval `target`."""
    if source == target:
        return image
    factor = (target[1] - target[0]) / (source[1] - source[0])
    return (image - source[0]) * factor + target[0]


def as_scales(indices: Indices) -> tuple[Tensor, ...]:
    """The indices as a tuple of scales; a single tensor becomes one scale."""
    return (indices,) if isinstance(indices, Tensor) else tuple(indices)


def in_range(image: Tensor) -> Tensor:
    """The image as float in [-1, 1]; refuses other ranges. The range follows from the dtype, not from the values."""
    is_a(Tensor, image=image)
    if image.dtype == torch.uint8:
        return to_float(image)
    if not image.is_floating_point():
        raise ValueError(f"image: got dtype {image.dtype}, expected uint8 (0 to 255) or float (-1 to 1)")
    if recording() or image.numel() == 0:
        return image
    if not reads_are_free(image):  # no wait for the device: `quantizers.latents.marked` handles NaN
        inside_B = (image.abs() <= 1.001).flatten(1).all(dim=1)
        return torch.where(inside_B.reshape(-1, 1, 1, 1), image, torch.nan)
    low, high = (float(value) for value in image.aminmax())
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"image: got float values from {low:.4g} to {high:.4g}, expected -1 to 1 (or uint8, 0 to 255)")
    return image
