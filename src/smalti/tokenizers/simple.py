"""SimpleVQVAE: the smallest complete image tokenizer.

Source: van den Oord et al. 2017 (arXiv 1711.00937); with `patch_nums` its quantizer is that of VAR (Tian et al. 2024,
arXiv 2404.02905).
"""

from collections.abc import Sequence
from typing import final

from smalti.blocks import ConvDecoder, ConvEncoder
from smalti.blocks.transformer import MOST_BLOCKS
from smalti.checks import at_least, between
from smalti.formats.arguments import checked
from smalti.quantizers import Quantizer
from smalti.tokenizers.chosen_quantizer import chosen_quantizer
from smalti.tokenizers.var_interface import VARTokenizer

MOST_STAGES = 16
"""With more stages one latent cell would cover more pixels than any image has."""


@final
class SimpleVQVAE(VARTokenizer):
    """Convolutional encoder, quantizer, transposed-convolution decoder.

    >>> model = SimpleVQVAE(vocab_size=16, embedding_dim=64)
    >>> reconstruction, vq_loss, indices = model(torch.randn(1, 3, 64, 64))  # (1, 3, 64, 64), (), (1, 16, 16)
    """

    @checked
    def __init__(
        self,
        vocab_size: int = 16,
        embedding_dim: int = 64,
        hidden_dim: int = 128,
        *,
        num_stages: int = 2,
        num_res_blocks: int = 1,
        activation: str = "silu",
        norm: str = "group",
        image_channels: int = 3,
        patch_nums: Sequence[int] | None = None,
        num_codebooks: int | None = None,
        quantizer: Quantizer | None = None,
    ):
        """
        Args:
            vocab_size: number of codes.
            embedding_dim: channels of the latent and dimension of a code.
            hidden_dim: channels of encoder and decoder at the latent's resolution.
            num_stages: down-sampling stages; the stride is 2 ** num_stages.
            num_res_blocks: residual blocks per stage.
            activation: "relu", "leaky_relu", "elu", "gelu" or "silu".
            norm: "group", "batch" or "none".
            image_channels: channels of the images, 3 for colour, 1 for grey.
            patch_nums: sides of the token maps, coarse to fine, for a multi-scale (VAR) tokenizer; None: one map.
            num_codebooks: number of codebooks for several scales; 1: shared by all scales, as VAR's code requires;
                None: one per scale.
            quantizer: any quantizer instead of the default one; vocab_size and embedding_dim must be those of it.
        """
        super().__init__()
        at_least(1, hidden_dim=hidden_dim, image_channels=image_channels)
        between(1, MOST_STAGES, num_stages=num_stages)
        between(0, MOST_BLOCKS, num_res_blocks=num_res_blocks)
        quantizer = chosen_quantizer(vocab_size, embedding_dim, patch_nums, num_codebooks, quantizer)
        network = (image_channels, embedding_dim, hidden_dim, num_stages, num_res_blocks, activation, norm)
        self.encoder, self.quantizer, self.decoder = ConvEncoder(*network), quantizer, ConvDecoder(*network)
        self.stride, self.image_channels = 2**num_stages, image_channels
        self.hidden_dim, self.num_stages, self.num_res_blocks = hidden_dim, num_stages, num_res_blocks
        self.activation, self.norm = activation, norm
