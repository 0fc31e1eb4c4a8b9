"""The vector quantizer of VQ-VAE: its codebook learns by gradient.

Source: van den Oord et al. 2017, "Neural Discrete Representation Learning" (arXiv 1711.00937), equations 1 to 3.
With `metric="cosine"` it is that of ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627) and LlamaGen (Sun et al. 2024, arXiv
2406.06525); their projection to few dimensions is `projected.py` around it.
Its neighbour `ema.py` replaces the gradient of the codebook by a moving average.
"""

from typing import final

from jaxtyping import Float
from torch import Tensor

from smalti.quantizers.base import mean_square
from smalti.quantizers.placed import PlacedCodebookQuantizer


def vq_terms(u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
    """The codebook term moves codes towards vectors, the commitment term vectors towards codes.

    码本损失让码字靠近编码器输出;承诺损失让编码器输出靠近码字。
    """
    return {
        "codebook": mean_square(codes_ND, u_ND.detach()),
        "commitment": mean_square(u_ND, codes_ND.detach()),
    }


@final
class VectorQuantizer(PlacedCodebookQuantizer):
    """Codebook learned by gradient: loss = ‖sg[z] − e‖² + beta · ‖z − sg[e]‖².

    >>> vq = VectorQuantizer(num_embeddings=16, embedding_dim=64)
    >>> quantized, loss, indices = vq(torch.randn(1, 64, 8, 8))  # (1, 64, 8, 8), (), (1, 8, 8)
    """

    def loss_terms(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """Equation 3 of the paper."""
        return vq_terms(u_ND, codes_ND)
