"""Index back-propagation quantization: the code with the largest dot product, not the smallest distance.

Source: Shi et al. 2024, IBQ, "Scalable Image Tokenization with Index Backpropagation Quantization" (arXiv 2412.02692).
It differs from `vector.py` in the choice, arg-max of z·e. A long code attracts more vectors than a short one here.
"""

from typing import final

from jaxtyping import Float, Int64
from torch import Tensor

from smalti.ops import nearest_code
from smalti.quantizers.codebook import CodebookQuantizer, mean_square


@final
class IndexBackpropagationQuantizer(CodebookQuantizer):
    """Codebook searched by dot product; loss = ‖sg[z] − e‖² + beta · ‖z − sg[e]‖²."""

    def search(self, z_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """Index of the code with the largest dot product."""
        return nearest_code(z_ND, self.embedding.weight, "dot")

    def loss_terms(self, z_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """The two terms of `VectorQuantizer`."""
        return {
            "codebook": mean_square(codes_ND, z_ND.detach()),
            "commitment": mean_square(z_ND, codes_ND.detach()),
        }
