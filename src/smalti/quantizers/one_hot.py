"""One-hot codes: the latent is one score a code, the largest wins, and the code is a one at its place.

Source: the dVAE of DALL-E (Ramesh et al. 2021, arXiv 2102.12092), whose decoder begins with a convolution of the
one-hot code. `gumbel.py` holds the layers on both sides, which make scores and codes; here they belong to encoder and
decoder, and nothing is left to learn.

Legend: N vectors, K codes, which are as many as components.
"""

from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.quantizers.base import positive
from smalti.quantizers.rows import RowQuantizer, Rows


@final
class OneHotQuantizer(RowQuantizer):
    """The place of the largest component; no loss. The gradient is that of the softmax, without its noise.

    >>> one_hot = OneHotQuantizer(num_embeddings=512)
    >>> quantized, loss, indices = one_hot(torch.randn(1, 512, 8, 8))  # (1, 512, 8, 8), 0, (1, 8, 8)
    """

    soft = True

    def __init__(self, num_embeddings: int):
        """
        Args:
            num_embeddings: number of codes K, the channels of the latent.
        """
        super().__init__()
        positive(num_embeddings=num_embeddings)
        self.num_embeddings = self.embedding_dim = num_embeddings
        self.register_buffer("place", torch.empty(0), persistent=False)  # nothing but the device

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """The first of the largest components."""
        return u_ND.argmax(dim=1)

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """A one at the place of the index."""
        return F.one_hot(indices_N, self.num_embeddings).float()

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> Rows:
        """Forward the one, backward to the softmax."""
        indices_N = self.search(u_ND)
        soft_NK = u_ND.softmax(dim=1)
        return Rows(indices_N, self.lookup(indices_N) + (soft_NK - soft_NK.detach()), {})

    def weights(self) -> dict[str, float]:
        """No terms."""
        return {}

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`."""
        return {"type": type(self).__name__, "num_embeddings": self.num_embeddings}
