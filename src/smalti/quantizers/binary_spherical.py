"""BSQ: the vector on the unit sphere, then the sign of each component.

Source: Zhao et al. 2024, "Image and Video Tokenization with Binary Spherical Quantization" (arXiv 2406.07548).

It differs from `lookup_free.py` in the projection to the sphere before and codes of length 1 (±1/√D) after it: the
quantization error is bounded, so the commitment term can be left out (beta = 0, as in the paper's code), and
assignments stay soft at temperature 1.
"""

import math
from typing import final

from jaxtyping import Float
from torch import Tensor

from smalti.ops import unit_sphere
from smalti.quantizers.binary import BinaryQuantizer


@final
class BinarySphericalQuantizer(BinaryQuantizer):
    """Codes ±1/√D per component; terms commitment, sample_entropy, codebook_divergence.

    >>> bsq = BinarySphericalQuantizer(embedding_dim=18)  # 2**18 codes
    >>> quantized, loss, indices = bsq(torch.randn(1, 18, 8, 8))  # (1, 18, 8, 8), (), (1, 8, 8)
    """

    def __init__(
        self,
        embedding_dim: int,
        beta: float = 0.0,
        *,
        entropy_weight: float = 0.1,
        gamma: float = 1.0,
        temperature: float = 1.0,
        group_size: int = 9,
        highest_first: bool = False,
    ):
        """Arguments as in `BinaryQuantizer`."""
        super().__init__(
            embedding_dim,
            beta,
            entropy_weight=entropy_weight,
            gamma=gamma,
            temperature=temperature,
            group_size=group_size,
            highest_first=highest_first,
        )

    @property
    def amplitude(self) -> float:
        """1/√D: every code has length 1."""
        return 1 / math.sqrt(self.embedding_dim)

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """To the unit sphere."""
        return unit_sphere(z_ND)
