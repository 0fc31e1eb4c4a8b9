"""DALL-E's discrete VAE: the encoder outputs one logit per code and position, the decoder gets one-hot codes.

Source: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation" (arXiv 2102.12092). Differences from `vqgan.py`: the
networks, and no codebook of latent vectors.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

from smalti.blocks.dvae import DVAEConfig, DVAEDecoder, DVAEEncoder
from smalti.checks import at_least
from smalti.formats.arguments import checked
from smalti.formats.plain import from_plain
from smalti.quantizers import Quantizer
from smalti.tokenizers.base import Tokenizer, growing


@final
class DVAE(Tokenizer):
    """Encoder, one-hot quantizer, decoder."""

    @checked
    def __init__(
        self,
        encoder: Mapping[str, Any] | DVAEConfig,
        quantizer: Quantizer,
        decoder: Mapping[str, Any] | DVAEConfig,
        *,
        image_channels: int = 3,
        image_range: Sequence[float] = (0.1, 0.9),
        source: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            encoder: sizes of the encoder.
            quantizer: `OneHotQuantizer`.
            decoder: sizes of the decoder, with as many groups as the encoder.
            image_channels: channels of the images.
            image_range: value range inside the networks; input and output images of the tokenizer lie in [-1, 1].
            source: origin of published weights: family, url, licence. Kept in config.json.
        """
        super().__init__()
        encoder, decoder = from_plain(DVAEConfig, encoder), from_plain(DVAEConfig, decoder)
        if encoder.groups != decoder.groups:
            raise ValueError(f"decoder: got {decoder.groups} groups, expected the encoder's {encoder.groups}")
        at_least(1, image_channels=image_channels)
        self.encoder = DVAEEncoder(encoder, image_channels, quantizer.embedding_dim)
        self.quantizer = quantizer
        self.decoder = DVAEDecoder(decoder, image_channels, quantizer.embedding_dim)
        self.stride, self.image_channels = 2 ** (encoder.groups - 1), image_channels
        self.image_range = growing(image_range)
        self.sizes, self.source = {"encoder": encoder, "decoder": decoder}, source or None
