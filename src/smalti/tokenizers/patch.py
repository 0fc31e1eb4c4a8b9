"""PatchVQVAE: a tokenizer that computes at the resolution of patches, fast enough to train on a CPU.

It differs from `simple.py` and `vqgan.py` only in encoder and decoder (`blocks/patch.py`). The default model of
`smalti train` has this class, and so have the models for photographs, `photo-f8` and `photo-pyramid`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

from smalti.blocks.patch import PatchConfig, PatchDecoder, PatchEncoder
from smalti.checks import at_least
from smalti.formats.arguments import checked
from smalti.formats.plain import from_plain
from smalti.quantizers import Quantizer
from smalti.tokenizers.base import check_strides
from smalti.tokenizers.chosen_quantizer import chosen_quantizer
from smalti.tokenizers.var_interface import VARTokenizer


@final
class PatchVQVAE(VARTokenizer):
    """Patch encoder, any quantizer, patch decoder.

    >>> model = PatchVQVAE(vocab_size=512, embedding_dim=16, encoder={"widths": [32, 64], "blocks": [1, 1]})
    >>> reconstruction, vq_loss, indices = model(torch.randn(1, 3, 64, 64))  # (1, 3, 64, 64), (), (1, 8, 8)
    """

    @checked
    def __init__(
        self,
        vocab_size: int = 8192,
        embedding_dim: int = 16,
        encoder: Mapping[str, Any] | PatchConfig | None = None,
        decoder: Mapping[str, Any] | PatchConfig | None = None,
        *,
        image_channels: int = 3,
        patch_nums: Sequence[int] | None = None,
        num_codebooks: int | None = None,
        quantizer: Quantizer | None = None,
    ):
        """
        Args:
            vocab_size: number of codes.
            embedding_dim: channels of the latent and dimension of a code.
            encoder: sizes of the encoder; None: the defaults of `PatchConfig`.
            decoder: sizes of the decoder; None: those of the encoder.
            image_channels: channels of the images, 3 for colour, 1 for grey.
            patch_nums: sides of the token maps, coarse to fine, for a multi-scale (VAR) tokenizer; None: one map.
            num_codebooks: number of codebooks for several scales; 1: shared by all scales, as VAR's code requires;
                None: one per scale.
            quantizer: any quantizer instead of the default one; vocab_size and embedding_dim must be those of it.

        Raises:
            ValueError: encoder and decoder of different strides, or sizes below 1; see also `chosen_quantizer`.
        """
        super().__init__()
        at_least(1, image_channels=image_channels)
        encoder = from_plain(PatchConfig, encoder or {})
        decoder = encoder if decoder is None else from_plain(PatchConfig, decoder)
        check_strides(encoder.stride, decoder.stride)
        self.encoder = PatchEncoder(encoder, image_channels, embedding_dim)
        self.quantizer = chosen_quantizer(vocab_size, embedding_dim, patch_nums, num_codebooks, quantizer)
        self.decoder = PatchDecoder(decoder, image_channels, embedding_dim)
        self.stride, self.image_channels = encoder.stride, image_channels
        self.sizes = {"encoder": encoder, "decoder": decoder}
