"""The z-norm variant of VAR's codebook: chosen by direction, used at full length.

Source: the option `using_znorm` of VAR's code (Tian et al. 2024, arXiv 2404.02905). It differs from the cosine metric
of `vector.py` in that codes come out as they are, not scaled to unit length.
"""

from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.ops import nearest_code
from smalti.quantizers.placed import PlacedCodebookQuantizer
from smalti.quantizers.vector import vq_terms


@final
class ZNormVectorQuantizer(PlacedCodebookQuantizer):
    """Codebook searched by cosine whose codes keep their length; loss = ‖sg[z] − e‖² + beta · ‖z − sg[e]‖²."""

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """Index of the code with the largest cosine."""
        with torch.no_grad():
            return nearest_code(u_ND, self.table(), "cosine")

    def loss_terms(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """The two terms of `VectorQuantizer`."""
        return vq_terms(u_ND, codes_ND)
