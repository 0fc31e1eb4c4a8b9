"""Entropies of soft code assignments: what makes a quantizer sure of each choice and even over all.

Source: Yu et al. 2023, "Language Model Beats Diffusion" (arXiv 2310.05737), equation 5: E[H(p)] - H(E[p]), where p is
the soft assignment of one vector. The second entropy is returned as the divergence from uniform use, log K - H(E[p]):
the same gradient with the sign that is to be minimised, and 0 when every code is used alike.

For binary codes the assignment is a product of independent bits, so that neither function needs the 2**bits codes of
one vector: H(p) is a sum over bits, and E[p] over a group of bits is a product of two thin matrices.

Legend: N vectors, K codes, G bits of a group.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from smalti.ops.tiles import map_tiles


def divergence_from_uniform(mean_K: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """log K - H(mean) in nats, at least 0: how far the mean assignment is from using all codes alike."""
    # x log x with the gradient of x = 0 kept finite
    entropy = -(mean_K * mean_K.clamp(min=torch.finfo(mean_K.dtype).tiny).log()).sum()
    return math.log(mean_K.numel()) - entropy


def bit_entropy(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Entropy in nats of a bit that is 1 with probability sigmoid(logit), accurate however sure it is."""
    size = logits.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def mean_bit_code_distribution(logits_NG: Float[Tensor, "n g"]) -> Float[Tensor, " codes"]:
    """Mean over vectors of the distribution over the 2**G codes of G independent bits; bit g counts 2**g.

    E[p] = A^T B / N, where A (N, 2**(G/2)) and B are the distributions over the two halves of the bits: exact, and
    2**(G/2) columns wide instead of 2**G.
    """
    half = logits_NG.shape[1] // 2

    def tile_sum(logits: Tensor) -> Tensor:
        low, high = _joint(logits[:, :half]), _joint(logits[:, half:])
        return high.T @ low

    # the joints, their partial products and what autograd keeps of them: about eight matrices of the wider half
    tiles = map_tiles(tile_sum, logits_NG, columns=8 * 2 ** (logits_NG.shape[1] - half))
    return torch.stack(tiles).sum(dim=0).flatten() / max(1, logits_NG.shape[0])


def _joint(logits_NG: Tensor) -> Tensor:
    """Distribution (N, 2**G) over the codes of G independent bits."""
    joint = logits_NG.new_ones(logits_NG.shape[0], 1)
    for g in range(logits_NG.shape[1]):
        logit_N1 = logits_NG[:, g : g + 1]
        joint = torch.cat([joint * torch.sigmoid(-logit_N1), joint * torch.sigmoid(logit_N1)], dim=1)
    return joint
