"""TiTok: an image as a short sequence of tokens, 32 for 256 x 256 pixels.

Source: Yu et al. 2024, "An Image is Worth 32 Tokens for Reconstruction and Generation" (arXiv 2406.07550). Unlike
all other tokenizers here, a token does not belong to a position: each token describes the whole image. Position
embeddings are learned for one image size; smaller images are padded to it, larger ones are refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor

from smalti.blocks.pyramid import PyramidConfig
from smalti.blocks.titok import CodeHead, PixelHead, TiTokDecoder, TiTokEncoder
from smalti.blocks.transformer import ViTConfig
from smalti.checks import at_least
from smalti.formats.arguments import checked, construct
from smalti.quantizers import Quantizer
from smalti.tokenizers.base import Tokenizer, growing


@final
class TiTok(Tokenizer):
    """Vision transformers around a quantizer of latent tokens; token maps have the shape (1, num_latent_tokens).

    >>> from smalti.quantizers import VectorQuantizer
    >>> sizes = {"width": 64, "layers": 2, "num_heads": 1}
    >>> model = TiTok(VectorQuantizer(512, 12, metric="cosine"), sizes, image_size=64, num_latent_tokens=16)
    >>> reconstruction, vq_loss, indices = model(torch.randn(1, 3, 64, 64))  # (1, 3, 64, 64), (), (1, 1, 16)
    """

    @checked
    def __init__(
        self,
        quantizer: Quantizer,
        encoder: Mapping[str, Any] | ViTConfig,
        decoder: Mapping[str, Any] | ViTConfig | None = None,
        *,
        image_size: int = 256,
        num_latent_tokens: int = 32,
        pixel_decoder: Mapping[str, Any] | PyramidConfig | None = None,
        num_pixel_codes: int = 1024,
        image_channels: int = 3,
        image_range: Sequence[float] = (0.0, 1.0),
        source: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            quantizer: any quantizer; its embedding_dim is the dimension of a latent token.
            encoder: sizes of the encoder, see `ViTConfig`.
            decoder: sizes of the decoder; None: those of the encoder.
            image_size: side of the images in pixels.
            num_latent_tokens: tokens per image.
            pixel_decoder: decoder of the VQGAN that computes pixels (two-stage models); None: patches become pixels
                directly (single-stage models).
            num_pixel_codes: codes of that VQGAN.
            image_channels: channels of the images.
            image_range: value range inside the networks; input and output images of the tokenizer lie in [-1, 1].
            source: origin of published weights: family, url, licence. Kept in config.json.
        """
        super().__init__()
        encoder = encoder if isinstance(encoder, ViTConfig) else construct(ViTConfig, encoder)
        decoder = encoder if decoder is None else decoder
        decoder = decoder if isinstance(decoder, ViTConfig) else construct(ViTConfig, decoder)
        pixels = None if pixel_decoder is None else PyramidConfig.of(pixel_decoder)
        _check(encoder, decoder, pixels, image_size)
        at_least(1, num_latent_tokens=num_latent_tokens, num_pixel_codes=num_pixel_codes, image_channels=image_channels)
        head = (
            PixelHead(decoder.width, decoder.patch_size, image_channels)
            if pixels is None
            else CodeHead(decoder.width, num_pixel_codes, pixels, image_channels)
        )
        dim = quantizer.embedding_dim
        self.encoder = TiTokEncoder(
            encoder, image_size, image_channels, num_latent_tokens, dim, interleaved=pixels is not None
        )
        self.quantizer = quantizer
        self.decoder = TiTokDecoder(decoder, image_size, num_latent_tokens, dim, head)
        self.stride, self.image_channels = image_size, image_channels
        self.image_size, self.num_latent_tokens, self.num_pixel_codes = image_size, num_latent_tokens, num_pixel_codes
        self.image_range, self.source = growing(image_range), source or None
        self.sizes = {"encoder": encoder, "decoder": decoder, "pixel_decoder": pixels}

    def latent_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(1, num_latent_tokens) for all images up to the training size."""
        if max(image_size) > self.stride:
            raise ValueError(
                f"image: got {image_size[0]}x{image_size[1]} pixels, expected at most {self.stride}x{self.stride}"
            )
        return (1, self.num_latent_tokens)

    def _latent(self, image: Tensor) -> Tensor:
        if image.dim() == 4:
            self.latent_grid((image.shape[2], image.shape[3]))
        return super()._latent(image)


def _check(encoder: ViTConfig, decoder: ViTConfig, pixels: PyramidConfig | None, image_size: int) -> None:
    for side in (encoder.patch_size, decoder.patch_size):
        if image_size < side or image_size % side:
            raise ValueError(f"image_size: got {image_size}, expected a multiple of the patch size {side}")
    if pixels is not None and pixels.stride != decoder.patch_size:
        raise ValueError(
            f"pixel_decoder: got stride {pixels.stride}, expected the decoder's patch size {decoder.patch_size}"
        )
