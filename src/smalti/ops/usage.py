"""Counts of codes, and usage, perplexity and entropy of the codebook.

Usage over one batch depends on the batch size. Count over a whole data set to compare tokenizers.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def count_codes(
    indices: Int64[Tensor, "*shape"], num_embeddings: int, counted: Bool[Tensor, "*shape"] | None = None
) -> Int64[Tensor, " k"]:
    """Count of each of `num_embeddings` codes in `indices` (any shape); with `counted`, only where it is True."""
    ones_N = torch.ones_like(indices).flatten() if counted is None else counted.flatten().long()
    counts_K = torch.zeros(num_embeddings, dtype=torch.int64, device=indices.device)
    return counts_K.index_add_(0, indices.flatten(), ones_N)


def code_sums(z_ND: Float[Tensor, "n d"], indices_N: Int64[Tensor, " n"], num_embeddings: int) -> Float[Tensor, "k d"]:
    """Sum of the vectors assigned to each code, in fp32, without an N x K one-hot matrix."""
    sums_KD = torch.zeros(num_embeddings, z_ND.shape[1], dtype=torch.float32, device=z_ND.device)
    return sums_KD.index_add_(0, indices_N, z_ND.float())


@dataclass(frozen=True)
class UsageStatistics:
    """Statistics of code counts."""

    tokens: int
    """Number of tokens counted."""
    used_codes: int
    """Number of codes that occurred at least once."""
    usage: float
    """Used codes divided by all codes, 0 to 1."""
    perplexity: float
    """exp(entropy): the size of a uniformly used codebook with the same entropy, 1 to K."""
    entropy_bits: float
    """Entropy of the code distribution in bits, 0 to log2 K: bits per token of an ideal order-0 coder."""


def usage_statistics(counts_K: Int64[Tensor, " k"]) -> UsageStatistics:
    """Usage, perplexity and entropy of code counts (K,). All zero if nothing was counted."""
    total = int(counts_K.sum())
    if total == 0:
        return UsageStatistics(tokens=0, used_codes=0, usage=0.0, perplexity=0.0, entropy_bits=0.0)
    p_K = counts_K.double() / total
    entropy_nats = -torch.xlogy(p_K, p_K).sum()
    used = int((counts_K > 0).sum())
    return UsageStatistics(
        tokens=total,
        used_codes=used,
        usage=used / counts_K.numel(),
        perplexity=float(entropy_nats.exp()),
        entropy_bits=abs(float(entropy_nats)) / math.log(2),  # abs: no -0.0
    )
