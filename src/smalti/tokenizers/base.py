"""What every image tokenizer is: encoder + quantizer + decoder, images of any size, tokens there and back.

Legend: B images, C image channels, H x W pixels, D embedding_dim, K scales, l_k tokens of scale k, L their sum.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from smalti.checks import expect
from smalti.models import SavedModel
from smalti.ops.graphs import recording
from smalti.ops.pixels import to_float, to_uint8
from smalti.ops.waiting import reads_are_free
from smalti.quantizers import Indices, Quantizer, QuantizerOutput, with_quantizer
from smalti.tokenizers.tokens import Tokens


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

    A subclass builds `encoder`, `quantizer` and `decoder` and says what it is (`config`). One whose quantizer may have
    scales also has VAR's interface (`var_interface.py`). Saving and loading, also
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
        indices = as_scales(self.quantizer.encode(self._latent(in_range(pixels))))
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

    # ---- parts --------------------------------------------------------------------------------------------------

    def _latent(self, image: Tensor) -> Tensor:
        """Pad to a multiple of the stride, then encode: (B, C, H, W) to (B, D, ⌈H / stride⌉, ⌈W / stride⌉)."""
        if image.dim() != 4 or image.shape[1] != self.image_channels or min(image.shape[2:]) < 1:
            raise ValueError(
                f"image: got shape {tuple(image.shape)}, expected (B, {self.image_channels}, H, W) with H, W >= 1"
            )
        if not image.is_floating_point():
            raise ValueError(f"image: got dtype {image.dtype}, expected float (-1 to 1)")
        image = pad_to_multiple(image.to(dtype_of(self.encoder)), self.stride)
        return self.encoder(_rescaled(image, (-1.0, 1.0), self.image_range))

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

    def latent_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the latent, and of the last token map, of an image of that size."""
        height, width = image_size
        return -(-height // self.stride), -(-width // self.stride)

    def _image(self, z_q: Tensor, size: tuple[int, int]) -> Tensor:
        """Decode and crop the padding away; clamped in eval mode, when the result is an image, not a prediction."""
        image = _rescaled(self.decoder(z_q), self.image_range, (-1.0, 1.0))[:, :, : size[0], : size[1]]
        return image if self.training else image.clamp(-1, 1)

    def _finish(self, z_q: Tensor, tokens: Tokens) -> Tensor:
        image = self._image(z_q.to(dtype_of(self.decoder)), tokens.image_size).clamp(-1, 1)
        return to_uint8(image) if tokens.image_dtype == torch.uint8 else image.to(tokens.image_dtype)

    def _checked(self, tokens: Tokens) -> Indices:
        """The indices as the quantizer wants them, after a look at vocabulary and image size."""
        if tokens.vocab_size != self.vocab_size:
            raise ValueError(
                f"tokens: got a vocabulary of {tokens.vocab_size}, expected {self.vocab_size} as this model has"
            )
        own = self._settled_fingerprint() if tokens.fingerprint else ""
        if own and own != tokens.fingerprint:
            raise ValueError(f"tokens: made by the model {tokens.fingerprint[:12]}…, this one is {own[:12]}…")
        latent, last = self.latent_grid(tokens.image_size), tokens.grids[-1]
        # How many codes a position may have is the quantizer's to say: residual levels may be left out
        if last[:2] != latent or len(last) != 2 + len(self.quantizer.code_shape):
            raise ValueError(
                f"tokens: got {last} as the last grid, expected {(*latent, *self.quantizer.code_shape)} for an image "
                f"of {tokens.image_size}"
            )
        return tokens.indices[0] if len(tokens.indices) == 1 else tokens.indices


def check_strides(encoder: int, decoder: int) -> None:
    """Refuse a decoder that does not undo the encoder's reduction in size."""
    if encoder != decoder:
        raise ValueError(f"decoder: got stride {decoder}, expected the encoder's {encoder}")


def growing(image_range: Sequence[float]) -> tuple[float, float]:
    """A range of values, refused where it is none."""
    good = len(image_range) == 2 and image_range[0] < image_range[1]
    expect(good, "image_range", tuple(image_range), "two growing numbers such as (-1, 1)")
    return float(image_range[0]), float(image_range[1])


def pad_to_multiple(image: Float[Tensor, "b c h w"], stride: int) -> Float[Tensor, "b c H W"]:
    """Pad below and right to multiples of `stride`: by reflection, or by the edge pixel where the side is too short."""
    for axis in (2, 3):
        missing = -image.shape[axis] % stride
        if recording() or missing:  # a graph for all sizes may not ask whether this one needs it
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
    """The indices of each scale; those of a single scale may come as one tensor."""
    return (indices,) if isinstance(indices, Tensor) else tuple(indices)


def in_range(image: Tensor) -> Tensor:
    """A float image in [-1, 1], refused where it is not: the dtype declares the range, the values do not."""
    if not image.is_floating_point():
        raise ValueError(f"image: got dtype {image.dtype}, expected uint8 (0 to 255) or float (-1 to 1)")
    if recording() or image.numel() == 0:
        return image
    if not reads_are_free(image):  # NaN has no token (`quantizers.latents.marked`), and nobody waits
        inside_B = (image.abs() <= 1.001).flatten(1).all(dim=1)
        return torch.where(inside_B.reshape(-1, 1, 1, 1), image, torch.nan)
    low, high = (float(value) for value in image.aminmax())
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"image: float values from {low:.4g} to {high:.4g}, expected -1 to 1 (or uint8, 0 to 255)")
    return image
