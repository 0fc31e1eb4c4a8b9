"""Emu3's tokenizer, for images: a VQGAN with temporal layers between pyramid and quantizer.

Source: Wang et al. 2024, "Emu3" (arXiv 2409.18869). It is a video tokenizer. An image is encoded as a video of equal
frames and gets the same tokens as in the authors' code. The only difference from `vqgan.py` is the temporal part.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

from smalti.blocks.pyramid import PyramidConfig
from smalti.blocks.temporal import FrameToImageDecoder, ImageToFrameEncoder
from smalti.formats.arguments import checked
from smalti.quantizers import Quantizer
from smalti.tokenizers.base import Tokenizer, check_strides, growing


@final
class Emu3VQ(Tokenizer):
    """Pyramid and temporal encoder, quantizer, temporal and pyramid decoder with norms conditioned on the latent."""

    @checked
    def __init__(
        self,
        encoder: Mapping[str, Any] | PyramidConfig,
        quantizer: Quantizer,
        decoder: Mapping[str, Any] | PyramidConfig,
        *,
        time_halvings: int = 2,
        time_blocks: int = 2,
        image_channels: int = 3,
        image_range: Sequence[float] = (-1.0, 1.0),
        source: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            encoder: sizes of the pyramid, see `PyramidConfig`; its projection is 0.
            quantizer: any quantizer; its embedding_dim equals latent_channels.
            decoder: sizes of the decoder's pyramid.
            time_halvings: temporal down-sampling stages; 2 ** time_halvings frames become one.
            time_blocks: temporal residual blocks on each side.
            image_channels: channels of the images.
            image_range: value range inside the networks; input and output images of the tokenizer lie in [-1, 1].
            source: origin of published weights: family, url, licence. Kept in config.json.
        """
        super().__init__()
        encoder, decoder = PyramidConfig.of(encoder), PyramidConfig.of(decoder)
        check_strides(encoder.stride, decoder.stride)
        temporal = (image_channels, quantizer.embedding_dim, time_halvings, time_blocks)
        self.encoder = ImageToFrameEncoder(encoder, *temporal)
        self.quantizer = quantizer
        self.decoder = FrameToImageDecoder(decoder, *temporal)
        self.stride, self.image_channels = encoder.stride, image_channels
        self.image_range = growing(image_range)
        self.sizes = {"encoder": encoder, "decoder": decoder}
        self.time_halvings, self.time_blocks, self.source = time_halvings, time_blocks, source or None
