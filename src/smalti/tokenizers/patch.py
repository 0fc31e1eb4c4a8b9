"""PatchVQVAE: a tokenizer whose network never runs at the image's own resolution, fast enough to train on a CPU.

It differs from `simple.py` and `vqgan.py` in its encoder and decoder alone (`blocks/patch.py`). The tokenizers for
photographs that come with the package, `photo-f8` and `photo-pyramid`, are of this class.
"""

from collections.abc import Mapping
from typing import Any, final

from smalti.blocks.config import from_plain, to_plain
from smalti.blocks.patch import PatchConfig, PatchDecoder, PatchEncoder
from smalti.quantizers import Quantizer
from smalti.tokenizers.base import Tokenizer


@final
class PatchVQVAE(Tokenizer):
    """Patch encoder, any quantizer, patch decoder.

    >>> from smalti.quantizers import VectorQuantizer
    >>> model = PatchVQVAE({"widths": [32, 64], "blocks": [1, 1]}, VectorQuantizer(512, 16))
    >>> reconstruction, vq_loss, indices = model(torch.randn(1, 3, 64, 64))  # (1, 3, 64, 64), (), (1, 8, 8)
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | PatchConfig,
        quantizer: Quantizer,
        decoder: Mapping[str, Any] | PatchConfig | None = None,
        *,
        image_channels: int = 3,
    ):
        """
        Args:
            encoder: sizes of the encoder, see `PatchConfig`.
            quantizer: any quantizer; its embedding_dim is the latent's channels.
            decoder: sizes of the decoder; None: those of the encoder.
            image_channels: channels of the images.

        Raises:
            ValueError: encoder and decoder of different strides, sizes below 1.
        """
        super().__init__()
        encoder = from_plain(PatchConfig, encoder)
        decoder = encoder if decoder is None else from_plain(PatchConfig, decoder)
        if encoder.stride != decoder.stride:
            raise ValueError(f"decoder: got stride {decoder.stride}, expected the encoder's {encoder.stride}")
        if image_channels < 1:
            raise ValueError(f"image_channels: got {image_channels}, expected at least 1")
        self.encoder = PatchEncoder(encoder, image_channels, quantizer.embedding_dim)
        self.quantizer = quantizer
        self.decoder = PatchDecoder(decoder, image_channels, quantizer.embedding_dim)
        self.stride, self.image_channels = encoder.stride, image_channels
        self._sizes = {"encoder": to_plain(encoder), "decoder": to_plain(decoder), "image_channels": image_channels}

    def config(self) -> dict[str, Any]:
        """See `Tokenizer.config`."""
        return {**self._sizes, "quantizer": self.quantizer.config()}
