"""Gradient through the choice of a code: the forward pass takes one code, the backward pass a soft mixture of all.

Source: Shi et al. 2024, "Scalable Image Tokenization with Index Backpropagation Quantization" (arXiv 2412.02692),
section 3.2; the same estimator on noisy probabilities is the straight-through Gumbel-softmax of Jang et al. 2016
(arXiv 1611.01144).

`straight_through.py` passes the gradient to the vector and none to the codes. Here it flows through the probabilities
to the vector and to every code. The authors multiply a one-hot matrix (N, K) with the codebook; gathering gives the
same values and gradients without that matrix.
"""

from jaxtyping import Float, Int64
from torch import Tensor


def index_backpropagation(
    probability_NK: Float[Tensor, "n k"], indices_N: Int64[Tensor, " n"], codebook_KD: Float[Tensor, "k d"]
) -> Float[Tensor, "n d"]:
    """The chosen codes (N, D), with the gradient of (one_hot - sg[p] + p) @ codebook.

    Args:
        probability_NK: probability of each code for each vector, differentiable.
        indices_N: indices of the chosen codes.
        codebook_KD: code vectors.
    """
    soft_ND = probability_NK @ codebook_KD.detach()
    return codebook_KD[indices_N] + (soft_ND - soft_ND.detach())
