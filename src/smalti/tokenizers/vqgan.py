"""The VQGAN family: a pyramid encoder, any quantizer, a pyramid decoder.

Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841). The
members of the family differ in their `PyramidConfig`s and quantizers: VAR (arXiv 2404.02905) has a
multi-scale quantizer, LlamaGen (arXiv 2406.06525) a codebook of unit vectors, IBQ (arXiv 2412.02692) a search by dot
product, Open-MAGVIT2 (arXiv 2409.04410) signs as codes, MaskGIT (arXiv 2202.04200) no attention. Their sizes are in
`zoo/`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.blocks.pyramid import PyramidConfig, PyramidDecoder, PyramidEncoder
from smalti.checks import at_least
from smalti.formats.arguments import checked
from smalti.quantizers import Quantizer
from smalti.tokenizers.base import check_strides, growing
from smalti.tokenizers.var_interface import VARTokenizer


@final
class VQGAN(VARTokenizer):
    """Pyramid encoder, quantizer, pyramid decoder.

    >>> from smalti.quantizers import VectorQuantizer
    >>> model = VQGAN({"widths": [32, 64]}, VectorQuantizer(num_embeddings=512, embedding_dim=8))
    >>> reconstruction, vq_loss, indices = model(torch.randn(1, 3, 64, 64))  # (1, 3, 64, 64), (), (1, 32, 32)
    """

    @checked
    def __init__(
        self,
        encoder: Mapping[str, Any] | PyramidConfig,
        quantizer: Quantizer,
        decoder: Mapping[str, Any] | PyramidConfig | None = None,
        *,
        encoder_only: bool = False,
        unit_codes: bool = False,
        image_channels: int = 3,
        image_range: Sequence[float] = (-1.0, 1.0),
        source: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            encoder: sizes of the encoder, see `PyramidConfig`.
            quantizer: any quantizer; its embedding_dim is the number of channels of the latent.
            decoder: sizes of the decoder; None: the mirrored encoder, with one more residual block per level.
            encoder_only: build no decoder, for checkpoints without one: encoding works, decoding is refused.
            unit_codes: scale codes to unit length before the decoder, although they are chosen by distance, as Janus
                in transformers does.
            image_channels: channels of the images.
            image_range: value range inside the networks; input and output images of the tokenizer lie in [-1, 1].
            source: origin of published weights: family, url, licence. Kept in config.json.
        """
        super().__init__()
        encoder = PyramidConfig.of(encoder)
        decoder = encoder.mirrored() if decoder is None else PyramidConfig.of(decoder)
        check_strides(encoder.stride, decoder.stride)
        at_least(1, image_channels=image_channels)
        self.encoder = PyramidEncoder(encoder, image_channels, quantizer.embedding_dim)
        self.quantizer = quantizer
        self.decoder = NoDecoder() if encoder_only else PyramidDecoder(decoder, image_channels, quantizer.embedding_dim)
        self.stride, self.image_channels = encoder.stride, image_channels
        self.image_range = growing(image_range)
        self.sizes = {"encoder": encoder, "decoder": decoder}
        self.encoder_only, self.unit_codes, self.source = encoder_only, unit_codes, source or None

    def _image(self, z_q: Tensor, size: tuple[int, int]) -> Tensor:
        return super()._image(F.normalize(z_q, dim=1) if self.unit_codes else z_q, size)


@final
class NoDecoder(nn.Module):
    """Placeholder for the decoder of a checkpoint that has none."""

    def forward(self, z_q: Float[Tensor, "b d h w"]) -> Tensor:
        """Refuse."""
        raise ValueError("decode: this checkpoint has no decoder; it can only encode")
