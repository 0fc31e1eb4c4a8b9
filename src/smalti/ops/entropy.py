"""Entropies of soft code assignments, for a loss that makes each choice confident and the code usage uniform.

Source: Yu et al. 2023, "Language Model Beats Diffusion" (arXiv 2310.05737), equation 5: E[H(p)] - H(E[p]), where p is
the soft assignment of one vector. The second term is returned as the divergence from uniform usage, log K - H(E[p]). It
has the same gradient as -H(E[p]), is minimised, and is 0 when all codes are used equally.

For binary codes the assignment is a product of independent bits, so the 2**bits codes of a vector are never enumerated:
H(p) is a sum over bits, and E[p] over a group of bits is a product of two thin matrices.

Legend: N vectors, K codes, G bits per group.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from smalti.ops.tiles import map_tiles


def divergence_from_uniform(mean_K: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """log K - H(mean) in nats, at least 0: the KL divergence of the mean assignment from uniform usage."""
    # x log x with the gradient of x = 0 kept finite
    entropy = -(mean_K * mean_K.clamp(min=torch.finfo(mean_K.dtype).tiny).log()).sum()
    return math.log(mean_K.numel()) - entropy


def bit_entropy(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Entropy in nats of a bit that is 1 with probability sigmoid(logit), accurate for logits of any size."""
    size = logits.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def mean_bit_code_distribution(logits_NG: Float[Tensor, "n g"]) -> Float[Tensor, " codes"]:
    """Distribution over the 2**G codes of G independent bits, averaged over vectors; bit g has the weight 2**g.

    E[p] = A^T B / N, where A (N, 2**(G/2)) and B are the distributions over the two halves of the bits. This is exact
    and needs 2**(G/2) columns instead of 2**G.
    """
    half = logits_NG.shape[1] // 2

    def tile_sum(logits: Tensor) -> Tensor:
        low, high = _joint(logits[:, :half]), _joint(logits[:, half:])
        return high.T @ low

    # the joint distributions, their partial products and autograd's copies: about eight matrices of the wider half
    tiles = map_tiles(tile_sum, logits_NG, columns=8 * 2 ** (logits_NG.shape[1] - half))
    return torch.stack(tiles).sum(dim=0).flatten() / max(1, logits_NG.shape[0])


def _joint(logits_NG: Tensor) -> Tensor:
    """Distribution (N, 2**G) over the codes of G independent bits."""
    joint = logits_NG.new_ones(logits_NG.shape[0], 1)
    for g in range(logits_NG.shape[1]):
        logit_N1 = logits_NG[:, g : g + 1]
        joint = torch.cat([joint * torch.sigmoid(-logit_N1), joint * torch.sigmoid(logit_N1)], dim=1)
    return joint
