"""Nearest codes in plain torch: any device, bounded memory, no compiler.

Neighbours: `nearest.py` chooses between this and `native.py`, which is many times faster on CPUs and exact whatever the
data. Here scores are computed in the expanded form |e|^2 / 2 - z.e in fp32: right unless two distances agree to more
digits than fp32 holds beside the size of the numbers, as with tight clusters of codes far from each other.

Legend: N vectors, K codes, D components.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

TILE_ROWS = 2048  # vectors a tile
TILE_CODES = 4096  # codes a tile: a tile of scores is 2048 x 4096 x 4 bytes = 32 MiB


def nearest(z_ND: Float[Tensor, "n d"], codebook_KD: Float[Tensor, "k d"], metric: str) -> Int64[Tensor, " n"]:
    """Index of the nearest code of every vector; see `smalti.ops.nearest_code`."""
    offset_D = _origin(codebook_KD) if metric == "euclidean" else torch.zeros_like(codebook_KD[0], dtype=torch.float32)
    codes_KD, bias_K = _linear_form(codebook_KD.float() - offset_D, metric)
    indices_N = torch.empty(z_ND.shape[0], dtype=torch.int64, device=z_ND.device)
    for start in range(0, z_ND.shape[0], TILE_ROWS):
        tile_ND = z_ND[start : start + TILE_ROWS].float() - offset_D
        indices_N[start : start + TILE_ROWS] = _search_tile(tile_ND, codes_KD, bias_K)
    return indices_N


def _origin(codebook_KD: Tensor) -> Tensor:
    """Where to put the origin: distances stay, and numbers near zero lose fewer digits in |e|^2 / 2 - z.e.

    The mean of the codes, rounded to 1/128 of the largest component, so that subtracting it from small whole numbers
    stays exact and ties stay ties.
    """
    step = torch.exp2(codebook_KD.float().abs().max().clamp(min=1e-30).log2().floor() - 7)
    return (codebook_KD.float().mean(dim=0) / step).round() * step


def _linear_form(codebook_KD: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Codes e' and biases b such that the nearest code has the smallest score b - z.e'."""
    if metric == "cosine":
        codebook_KD = torch.nn.functional.normalize(codebook_KD, dim=1)
    if metric == "euclidean":
        # |z - e|^2 = |z|^2 - 2 (z.e - |e|^2 / 2), and |z|^2 is the same for every code.
        return codebook_KD, codebook_KD.square().sum(dim=1) / 2
    return codebook_KD, codebook_KD.new_zeros(codebook_KD.shape[0])


def _search_tile(z_ND: Tensor, codes_KD: Tensor, bias_K: Tensor) -> Tensor:
    best_N = torch.full((z_ND.shape[0],), torch.inf, device=z_ND.device)
    index_N = torch.zeros(z_ND.shape[0], dtype=torch.int64, device=z_ND.device)
    with torch.autocast(z_ND.device.type, enabled=False):
        for start in range(0, codes_KD.shape[0], TILE_CODES):
            codes = slice(start, start + TILE_CODES)
            score_NK = torch.addmm(bias_K[codes], z_ND, codes_KD[codes].T, alpha=-1)
            score_N, offset_N = score_NK.min(dim=1)
            better_N = score_N < best_N  # strictly: on a tie the earlier tile keeps the vector
            best_N = torch.where(better_N, score_N, best_N)
            index_N = torch.where(better_N, offset_N + start, index_N)
    return index_N
