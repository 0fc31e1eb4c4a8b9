"""Gradient through the choice of a code: forward one code, backward as if a soft mixture of all had been taken.

Source: Shi et al. 2024, "Scalable Image Tokenization with Index Backpropagation Quantization" (arXiv 2412.02692),
section 3.2; the same estimator on noisy probabilities is the straight-through Gumbel-softmax of Jang et al. 2016
(arXiv 1611.01144).

`straight_through.py` gives the gradient to the vector and none to the codes; here it flows through the probabilities
to the vector and to every code. The publishers multiply a one-hot matrix (N, K) with the codebook; gathering gives the
same values and gradients without it.
"""

from jaxtyping import Float, Int64
from torch import Tensor


def index_backpropagation(
    probability_NK: Float[Tensor, "n k"], indices_N: Int64[Tensor, " n"], codebook_KD: Float[Tensor, "k d"]
) -> Float[Tensor, "n d"]:
    """The chosen codes (N, D), with the gradient of (one_hot - sg[p] + p) @ codebook.

    Args:
        probability_NK: how likely each code is for each vector, differentiable.
        indices_N: the codes chosen.
        codebook_KD: the codes.
    """
    soft_ND = probability_NK @ codebook_KD.detach()
    return codebook_KD[indices_N] + (soft_ND - soft_ND.detach())
