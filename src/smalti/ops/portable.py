"""Nearest codes in plain torch: any device, bounded memory, no compiler.

`nearest.py` chooses between the back ends; `native.py` is many times faster on CPUs, `triton_search.py` on GPUs. The
result always equals a float64 brute-force search over the float32 values. Ties go to the lowest index.

Scores |e|^2 / 2 - z.e are computed in tiles by a matrix product in fp32. They are fast but rounded, and for two close
codes far from the origin all digits of the difference are lost. A bound on the error tells which codes can be the
nearest, mostly one or two. Only these are compared again by their distances in float64. Their number depends on the
values, which a program would have to wait for on a GPU. Therefore all pairs are compared in float64 there.

Legend: N vectors, K codes, D components, P pairs of a vector and a code.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.ops.device import without_autocast
from smalti.ops.waiting import reads_are_free

MAX_SIDE = 1024  # rows and codes of a tile of scores: 4 MiB
TILE_NUMBERS = 2**19  # components in the rows, or in the codes, of a tile: 2 MiB
GPU_SIDE = 2048  # rows and codes of a tile on a GPU: 32 MiB of float64
PAIR_NUMBERS = 2**18  # components compared at once in float64: 2 MiB


def nearest(z_ND: Float[Tensor, "n d"], codebook_KD: Float[Tensor, "k d"], metric: str) -> Int64[Tensor, " n"]:
    """Index of the nearest code for every vector; see `smalti.ops.nearest_code`.

    A row with NaN or infinity gets index 0; a code with NaN or infinity is never the nearest. Besides inputs and result
    it needs about 50 MB at most.
    """
    origin_D = _origin(codebook_KD) if metric == "euclidean" else torch.zeros_like(codebook_KD[0], dtype=torch.float32)
    side = _side(z_ND.shape[1])
    indices_N = torch.zeros(z_ND.shape[0], dtype=torch.int64, device=z_ND.device)
    with without_autocast(z_ND):
        if not reads_are_free(z_ND):
            return torch.cat([_search_all(rows_ND, codebook_KD, metric) for rows_ND in z_ND.split(GPU_SIDE)])
        for start in range(0, z_ND.shape[0], side):
            rows = slice(start, start + side)
            indices_N[rows] = _search_rows(z_ND[rows].float(), codebook_KD, metric, origin_D)
    return indices_N


def _search_all(z_ND: Tensor, codebook_KD: Tensor, metric: str) -> Tensor:
    """Compare all pairs in float64: more arithmetic, but independent of the values, so the program waits for no GPU.

    A matrix product may sum equal codes in different orders. Therefore costs that differ by less than its rounding
    error count as equal, and the lowest index wins.
    """
    finite_N = z_ND.isfinite().all(dim=1)
    z_ND = torch.where(finite_N[:, None], z_ND, 0.0).double()
    cost_N1 = torch.full_like(z_ND[:, :1], torch.inf)
    index_N1 = torch.zeros_like(cost_N1, dtype=torch.int64)
    for number, tile_KD in enumerate(codebook_KD.split(GPU_SIDE)):
        finite_K = tile_KD.isfinite().all(dim=1)
        e_KD = torch.where(finite_K[:, None], tile_KD, 0.0).double()
        if metric == "euclidean":
            cost_NK = torch.cdist(z_ND, e_KD, compute_mode="donot_use_mm_for_euclid_dist")
            rounding_N1 = torch.zeros_like(cost_N1)
        else:
            e_KD = torch.nn.functional.normalize(e_KD, dim=1) if metric == "cosine" else e_KD
            cost_NK = -(z_ND @ e_KD.T)
            rounding_N1 = 2.0**-48 * z_ND.norm(dim=1, keepdim=True) * e_KD.norm(dim=1).amax()
        cost_NK = cost_NK.masked_fill(~finite_K, torch.inf)
        least_N1 = cost_NK.amin(dim=1, keepdim=True)
        first_N1 = (cost_NK <= least_N1 + rounding_N1).byte().argmax(dim=1, keepdim=True)  # lowest index of equals
        closer_N1 = least_N1 < cost_N1 - rounding_N1
        index_N1 = torch.where(closer_N1, first_N1 + number * GPU_SIDE, index_N1)
        cost_N1 = torch.where(closer_N1, least_N1, cost_N1)
    return index_N1[:, 0].masked_fill(~finite_N, 0)


def nearest_by_scores(
    z_ND: Float[Tensor, "n d"], codebook_KD: Float[Tensor, "k d"], metric: str
) -> Int64[Tensor, " n"]:
    """The same as one matrix product and an arg-min, for graphs that are exported to ONNX or TorchScript.

    All N x K scores are in memory at once, and rounding decides between codes whose scores agree to seven digits.
    """
    codebook_KD = codebook_KD.float()
    origin_D = _origin(codebook_KD) if metric == "euclidean" else torch.zeros_like(codebook_KD[0])
    codes_KD, bias_K = _linear_form(codebook_KD, metric, origin_D)
    return (bias_K - (z_ND.float() - origin_D) @ codes_KD.T).argmin(dim=1)


def _side(dim: int) -> int:
    return max(1, min(MAX_SIDE, TILE_NUMBERS // dim))


def _origin(codebook_KD: Tensor) -> Tensor:
    """New origin: the mean of some codes. Distances stay the same, and smaller numbers have smaller errors."""
    step = max(1, codebook_KD.numel() // TILE_NUMBERS)
    return codebook_KD[::step].float().mean(dim=0).nan_to_num(0.0, 0.0, 0.0)


def _search_rows(z_ND: Tensor, codebook_KD: Tensor, metric: str, origin_D: Tensor) -> Tensor:
    finite_N = z_ND.isfinite().all(dim=1)
    z_ND = torch.where(finite_N[:, None], z_ND, 0.0)
    centred_ND = z_ND - origin_D
    length_N = torch.linalg.vector_norm(centred_ND, dim=1)
    ceiling_N = torch.full_like(length_N, torch.inf)  # upper bound of the nearest code's true score
    best = _Best(z_ND)
    side = _side(z_ND.shape[1])
    for start in range(0, codebook_KD.shape[0], side):
        tile_KD = codebook_KD[start : start + side].float()
        codes_KD, bias_K = _linear_form(tile_KD, metric, origin_D)
        error_N = _error_bound(length_N, codes_KD, metric)
        score_NK = torch.addmm(bias_K, centred_ND, codes_KD.T, alpha=-1)
        ceiling_N = torch.minimum(ceiling_N, score_NK.amin(dim=1) + error_N)
        # not "<=": if fp32 overflowed, the score or the bound is NaN, and the code must stay a candidate
        candidates_NK = (score_NK > (ceiling_N + error_N)[:, None]).logical_not_()
        rows_P, codes_P = candidates_NK.nonzero(as_tuple=True)
        best.compare(rows_P, codes_P, tile_KD, start, metric)
    return best.index_N.to(z_ND.device).masked_fill_(~finite_N, 0)


def _linear_form(tile_KD: Tensor, metric: str, origin_D: Tensor) -> tuple[Tensor, Tensor]:
    """Codes e' and biases b such that the nearest code has the smallest score b - z.e'."""
    finite_K = tile_KD.isfinite().all(dim=1)
    codes_KD = torch.where(finite_K[:, None], tile_KD - origin_D, 0.0)
    bias_K = torch.zeros_like(codes_KD[:, 0])
    if metric == "euclidean":
        # |z - e|^2 = |z|^2 - 2 (z.e - |e|^2 / 2), and |z|^2 is the same for every code.
        bias_K = codes_KD.square().sum(dim=1) / 2
    if metric == "cosine":
        codes_KD = codes_KD / codes_KD.abs().amax(dim=1, keepdim=True).clamp(min=1)  # else large squares overflow
        codes_KD = torch.nn.functional.normalize(codes_KD, dim=1)
    return codes_KD, bias_K.masked_fill(~finite_K, torch.inf)


def _error_bound(length_N: Tensor, codes_KD: Tensor, metric: str) -> Tensor:
    """Upper bound (N,) of the error of a score in this tile.

    A sum with n roundings has an error of at most about n * 2^-24 times the sum of its absolute terms (Higham, Accuracy
    and Stability of Numerical Algorithms, 3.1), here |z| |e| + |e|^2 / 2. Twice that covers origin and lengths.
    """
    dim = codes_KD.shape[1]
    longest = torch.linalg.vector_norm(codes_KD, dim=1).amax()
    terms_N = length_N * longest + (longest.square() / 2 if metric == "euclidean" else 0)
    relative = 2 * (dim + 8) * 2.0**-24
    backend = torch.backends.cuda if length_N.device.type == "cuda" else torch.backends.mkldnn
    if backend.matmul.fp32_precision not in ("none", "ieee"):
        relative += 2.0**-7  # the user allows products to round their factors to TF32 or bfloat16
    return relative * terms_N + (dim + 8) * 2.0**-125 * (1 + length_N + longest)  # last term: underflow


class _Best:
    """Nearest codes found so far for a tile of rows, by float64 cost."""

    def __init__(self, z_ND: Tensor):
        # Apple GPUs have no float64: the few pairs are compared on the CPU
        self.device = torch.device("cpu") if z_ND.device.type == "mps" else z_ND.device
        self.z_ND = z_ND
        self.cost_N = torch.full((z_ND.shape[0],), torch.inf, dtype=torch.float64, device=self.device)
        self.index_N = torch.zeros(z_ND.shape[0], dtype=torch.int64, device=self.device)

    def compare(self, rows_P: Tensor, codes_P: Tensor, tile_KD: Tensor, offset: int, metric: str) -> None:
        """Compare codes `codes_P` of a tile, which starts at code `offset`, with the best codes of rows `rows_P`."""
        step = max(1, PAIR_NUMBERS // tile_KD.shape[1])
        for rows, codes in zip(rows_P.split(step), codes_P.split(step), strict=True):
            z_PD, e_PD = self.z_ND[rows].to(self.device).double(), tile_KD[codes].to(self.device).double()
            self._merge(rows.to(self.device), codes.to(self.device) + offset, _exact_cost(z_PD, e_PD, metric))

    def _merge(self, rows_P: Tensor, codes_P: Tensor, cost_P: Tensor) -> None:
        before_N = self.cost_N.clone()
        self.cost_N.scatter_reduce_(0, rows_P, cost_P, "amin")
        # a row that improves drops its old code; otherwise it keeps it, unless an equally near code has a lower index
        self.index_N.masked_fill_(self.cost_N < before_N, torch.iinfo(torch.int64).max)
        equal_P = cost_P == self.cost_N[rows_P]
        self.index_N.scatter_reduce_(0, rows_P[equal_P], codes_P[equal_P], "amin")


def _exact_cost(z_PD: Tensor, e_PD: Tensor, metric: str) -> Tensor:
    """Cost in float64; smaller is nearer. A code that is not finite has infinite cost."""
    if metric == "euclidean":
        cost_P = (z_PD - e_PD).square_().sum(dim=1)
    else:
        if metric == "cosine":
            e_PD = torch.nn.functional.normalize(e_PD, dim=1)
        cost_P = -(z_PD * e_PD).sum(dim=1)
    return torch.where(e_PD.isfinite().all(dim=1), cost_P, torch.inf)
