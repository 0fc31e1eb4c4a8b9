"""LFQ: the sign of each component is its code.

Source: Yu et al. 2023, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (MAGVIT-v2, arXiv
2310.05737), section 3.1; entropy over groups of bits and weights as in Open-MAGVIT2 (Luo et al. 2024, arXiv
2409.04410).

It differs from `finite_scalar.py` in that the latent is not bounded and an entropy loss spreads it over the codes, and
from `binary_spherical.py` in that lengths count: codes are ±1 in every component.
"""

from typing import final

from smalti.quantizers.binary import BinaryQuantizer


@final
class LookupFreeQuantizer(BinaryQuantizer):
    """Codes ±1 per component; terms commitment, sample_entropy, codebook_divergence.

    >>> lfq = LookupFreeQuantizer(embedding_dim=18)  # 2**18 codes
    >>> quantized, loss, indices = lfq(torch.randn(1, 18, 8, 8))  # (1, 18, 8, 8), (), (1, 8, 8)
    """

    def __init__(
        self,
        embedding_dim: int,
        beta: float = 0.25,
        *,
        entropy_weight: float = 0.1,
        gamma: float = 1.0,
        temperature: float = 0.01,
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
        """1."""
        return 1.0
