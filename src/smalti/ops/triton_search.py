"""Nearest codes on the GPU by Triton kernels: the codebook is read in tiles, the running arg-min stays in registers.

`native.py` does the same on CPUs, `portable.py` in plain torch on any device. The exact result always equals a float64
brute-force search over the float32 values. Ties go to the lowest index. It is computed in three passes, each more
precise and slower than the one before; each pass handles only the rows that are still undecided. Their number stays on
the GPU: a pass is launched for all rows, undecided rows first, and the programs for the others return at once:

    1. scores from TF32 products on tensor cores (10 bits; from `MIN_TF32_DIM` components on),
    2. scores from fp32 products,
    3. distances in float64, from the original numbers.

A row is decided when its best score leads the second best by more than the errors of both. The fast result is that of
pass 1, whatever the lead.

A program takes BLOCK_N rows and walks over the codes BLOCK_K at a time. Few rows are few programs, and most of the GPU
would be idle. So the codes are split among up to `PROGRAMS` programs: each finds the nearest of its codes, and one more
step finds the nearest of these. The number of splits depends on N and K alone, not on values; for many rows it is 1.

Besides inputs and result, O(N) numbers for rows and O(K) for codes are stored, and for few rows a number of entries
that is limited by `PROGRAMS`.

Status: tested under Triton's interpreter, and compiled for GPUs, but not yet run on one.

Legend: N vectors, K codes, D components, S splits of the codes.
"""

from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

Products = Literal["tf32", "ieee"]

MIN_TF32_DIM = 32  # with fewer, too many codes are too close for TF32
# The largest tiles that fit in registers, as the compiler reports for compute capability 8.0 and 9.0
LAUNCH = {"BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8}
LAUNCH_FLOAT64 = {"BLOCK_N": 16, "BLOCK_K": 128, "num_warps": 8}
LAUNCH_DECIDE = {"BLOCK_N": 16, "num_warps": 8}
# Programs that keep a GPU busy: about two for each of its 108 to 132 multiprocessors (A100, H100, H200)
PROGRAMS = 256


def nearest(
    z_ND: Float[Tensor, "n d"],
    codebook_KD: Float[Tensor, "k d"],
    metric: Literal["euclidean", "cosine", "dot"] = "euclidean",
    precision: Literal["exact", "fast"] = "exact",
) -> Int64[Tensor, " n"]:
    """Index of the nearest code for every vector; see `smalti.ops.nearest_code`.

    Args:
        z_ND: float32, float16 or bfloat16, on the GPU; any strides.
        codebook_KD: K >= 1 codes on the same GPU; dtypes as for z.
        metric: as in `nearest_code`.
        precision: "exact", or "fast": the best TF32 score, without a check.

    A row with NaN or infinity gets index 0 ("fast": any index); a code with NaN or infinity is never the nearest.
    """
    _check_device(z_ND, codebook_KD)
    N, D = z_ND.shape
    indices_N = torch.zeros(N, dtype=torch.int64, device=z_ND.device)
    if N == 0:
        return indices_N
    z_ND, codebook_KD = z_ND.detach(), codebook_KD.detach()
    passes: tuple[Products, ...] = ("tf32", "ieee") if D >= MIN_TF32_DIM else ("ieee",)
    if precision == "fast":
        passes = ("tf32",)
    is_open = torch.ones(N, dtype=torch.bool, device=z_ND.device)
    with torch.cuda.device_of(z_ND):
        codes = _describe(codebook_KD, metric)
        for products in passes:
            is_open = _search(z_ND, codebook_KD, codes, _Rows.first(is_open), indices_N, products)
        if precision == "fast":
            return indices_N
        return torch.where(is_open, _search_float64(z_ND, codebook_KD, metric, _Rows.first(is_open)), indices_N)


def _check_device(z_ND: Tensor, codebook_KD: Tensor) -> None:
    allowed = ("cuda", "cpu") if triton.knobs.runtime.interpret else ("cuda",)
    if z_ND.device.type not in allowed or codebook_KD.device != z_ND.device:
        raise ValueError(
            f"backend: got 'triton' with z_ND on {z_ND.device} and codebook_KD on {codebook_KD.device}, "
            "expected both on one CUDA device"
        )


class _Codes(NamedTuple):
    """Codes in the form used by the kernels: the nearest code has the smallest score bias - scale * (z.e)."""

    origin_D: Tensor
    """Subtracted from rows and codes to reduce errors: the mean of some codes; 0 unless euclidean."""
    bias_K: Tensor
    """|e|^2 / 2 if euclidean, else 0; infinite for a code that is not finite."""
    scale_K: Tensor
    """1 / |e| if cosine, else 1."""
    largest_3: Tensor
    """Largest length |e|, scaled length and bias among finite codes."""


class _Rows(NamedTuple):
    """The rows of a pass."""

    order_N: Tensor
    """Numbers of all rows, those of this pass first."""
    number: Tensor
    """Number of rows of this pass, (1,) on the GPU."""

    @classmethod
    def first(cls, is_open_N: Tensor) -> "_Rows":
        """The undecided rows first, in their order."""
        return cls((~is_open_N).to(torch.uint8).argsort(stable=True), is_open_N.sum().reshape(1))


def _describe(codebook_KD: Tensor, metric: str) -> _Codes:
    K, D = codebook_KD.shape
    origin_D = torch.zeros(D, device=codebook_KD.device)
    if metric == "euclidean":
        origin_D = codebook_KD[:: triton.cdiv(K, 16)].float().mean(dim=0).nan_to_num(0.0, 0.0, 0.0)
    bias_K, scale_K, length_K = torch.empty(3, K, device=codebook_KD.device)
    describe[(triton.cdiv(K, 64),)](
        codebook_KD, origin_D, bias_K, scale_K, length_K, K, D, *codebook_KD.stride(), METRIC=metric, BLOCK_K=64
    )
    longest = length_K.max()
    largest_bias = longest.square() / 2 if metric == "euclidean" else torch.zeros_like(longest)
    return _Codes(origin_D, bias_K, scale_K, torch.stack([longest, (length_K * scale_K).max(), largest_bias]))


def _search(
    z_ND: Tensor, codebook_KD: Tensor, codes: _Codes, rows: _Rows, indices_N: Tensor, products: Products
) -> Tensor:
    """Write the indices of some rows; return a mask of all rows that are still undecided."""
    (N, D), K, device = z_ND.shape, len(codebook_KD), z_ND.device
    blocks, S = _grid(N, K, LAUNCH)
    best_NS, second_NS = torch.empty(2, N, S, device=device)
    code_NS = torch.empty(N, S, dtype=torch.int32, device=device)
    margin_N = torch.empty(N, device=device)
    search[blocks, S](
        z_ND, codebook_KD, *codes, *rows, best_NS, second_NS, code_NS, margin_N, K,
        *z_ND.stride(), *codebook_KD.stride(), _relative_error(products, D),
        PRODUCTS=products, D=D, BLOCK_D=_block_d(products, D), **LAUNCH,
    )  # fmt: skip
    is_open_N = torch.zeros(N, dtype=torch.bool, device=device)
    decide[(triton.cdiv(N, LAUNCH_DECIDE["BLOCK_N"]),)](
        best_NS, second_NS, code_NS, margin_N, *rows, indices_N, is_open_N, SPLITS=S, **LAUNCH_DECIDE
    )
    return is_open_N


def _search_float64(z_ND: Tensor, codebook_KD: Tensor, metric: str, rows: _Rows) -> Tensor:
    """The indices of some rows; arbitrary ones for the other rows."""
    N, (K, D) = len(z_ND), codebook_KD.shape
    blocks, S = _grid(N, K, LAUNCH_FLOAT64)
    best_NS = torch.empty(N, S, dtype=torch.float64, device=z_ND.device)
    code_NS = torch.empty(N, S, dtype=torch.int64, device=z_ND.device)
    search_float64[blocks, S](
        z_ND, codebook_KD, *rows, best_NS, code_NS, K, D, *z_ND.stride(), *codebook_KD.stride(),
        METRIC=metric, **LAUNCH_FLOAT64,
    )  # fmt: skip
    split_N1 = best_NS.argmin(dim=1, keepdim=True)  # ties: the first split, whose codes have the lowest indices
    return code_NS.gather(1, split_N1)[:, 0]


def _grid(N: int, K: int, launch: dict[str, int]) -> tuple[int, int]:
    """Number of blocks of rows, and of splits of the codes: a power of two, as `decide` needs; 1 for many rows."""
    blocks_of_rows, blocks_of_codes = triton.cdiv(N, launch["BLOCK_N"]), triton.cdiv(K, launch["BLOCK_K"])
    at_most = max(1, min(PROGRAMS // blocks_of_rows, blocks_of_codes))
    return blocks_of_rows, 2 ** (at_most.bit_length() - 1)


def _block_d(products: Products, dim: int) -> int:
    """Components per step: many for tensor cores, few for fp32 products, which are limited by registers."""
    if products == "ieee":
        return 16
    return max(16, triton.next_power_of_2(dim)) if dim <= 64 else 32


def _relative_error(products: Products, dim: int) -> float:
    """Upper bound of the error of a score, relative to |z| |e| + |e|^2 / 2.

    A sum with n roundings has an error of at most about n * 2^-24 times the sum of its absolute terms (Higham, Accuracy
    and Stability of Numerical Algorithms, 3.1); twice that covers origin and lengths. Tensor cores truncate both
    factors after 10 bits, and truncate their sums instead of rounding.
    """
    return 2 * (dim + 8) * 2.0**-24 if products == "ieee" else 2.0**-9 + 2 * (dim + 8) * 2.0**-22


@triton.jit
def describe(codes, origin, bias, scale, length, K, D, stride_k, stride_d, METRIC: tl.constexpr, BLOCK_K: tl.constexpr):
    """Bias, scale and length of BLOCK_K codes, see `_Codes`; in float64 no square of a float32 overflows."""
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    code = codes + k.to(tl.int64) * stride_k
    square = tl.zeros([BLOCK_K], tl.float64)
    for d in range(D):
        e = tl.load(code, k < K, other=0.0).to(tl.float32) - tl.load(origin + d)
        code += stride_d  # pointers have 64 bits, d * stride_d would have 32
        square += e.to(tl.float64) * e.to(tl.float64)
    finite = square < float("inf")
    norm = tl.sqrt(tl.where(finite, square, 0.0))
    b = tl.where(finite, square / 2 if METRIC == "euclidean" else 0.0, float("inf"))
    s = 1 / tl.maximum(norm, 1e-12) if METRIC == "cosine" else tl.full([BLOCK_K], 1.0, tl.float64)
    tl.store(bias + k, b.to(tl.float32), k < K)
    tl.store(scale + k, s.to(tl.float32), k < K)
    tl.store(length + k, norm.to(tl.float32), k < K)


@triton.jit
def load_tile(base, d, D, stride_d, origin, mask):
    """Entries [base, d] of a matrix in float32, minus the origin; 0 outside of it. `base` and `mask` are columns."""
    tile = tl.load(base + d.to(tl.int64)[None, :] * stride_d, mask & (d < D)[None, :], other=0.0).to(tl.float32)
    return tile - tl.load(origin + d, d < D, other=0.0)[None, :]


@triton.jit
def range_of_split(K, BLOCK_K: tl.constexpr):
    """The first code of this program's split and the first one after it. Splits are whole blocks; some may be empty."""
    split_k = tl.cdiv(tl.cdiv(K, BLOCK_K), tl.num_programs(1)) * BLOCK_K
    first = tl.program_id(1) * split_k
    return first, tl.minimum(first + split_k, K)


@triton.jit
def smallest(cost, code):
    """The smallest cost of each row [rows, candidates], and the lowest code that has it."""
    cost_of_row = tl.min(cost, axis=1)
    return cost_of_row, tl.min(tl.where(cost == cost_of_row[:, None], code, 2**31 - 1), axis=1)


@triton.jit
def smallest_two(best, second, code):
    """As `smallest`, and the second smallest score; a candidate has the best and second best score of its codes."""
    best_of_row, index = smallest(best, code)
    is_winner = (best == best_of_row[:, None]) & (code == index[:, None])
    second_of_row = tl.min(tl.minimum(second, tl.where(is_winner, float("inf"), best)), axis=1)
    return best_of_row, second_of_row, index


@triton.jit
def search(
    z, codes, origin, bias, scale, largest, rows, count, best_of_split, second_of_split, code_of_split, margin, K,
    stride_zn, stride_zd, stride_ck, stride_cd, relative_error,
    PRODUCTS: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The smallest and second smallest score of a split for BLOCK_N rows, and the lead that rounding cannot undo."""
    N = tl.load(count)
    if tl.program_id(0) * BLOCK_N >= N:
        return
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    row = tl.load(rows + n, n < N, other=0)
    z_row = z + row[:, None] * stride_zn
    row_exists = (n < N)[:, None]

    first_z_tile = load_tile(z_row, d, D, stride_zd, origin, row_exists)  # often the only one: D <= BLOCK_D
    square = tl.sum(first_z_tile * first_z_tile, axis=1)
    for start_d in range(BLOCK_D, D, BLOCK_D):
        z_tile = load_tile(z_row, start_d + d, D, stride_zd, origin, row_exists)
        square += tl.sum(z_tile * z_tile, axis=1)

    # Each lane keeps the best and second best score of its codes
    best = tl.full([BLOCK_N, BLOCK_K], float("inf"), tl.float32)
    second = tl.full([BLOCK_N, BLOCK_K], float("inf"), tl.float32)
    code_of_best = tl.zeros([BLOCK_N, BLOCK_K], tl.int32)
    first_k, end_k = range_of_split(K, BLOCK_K)
    for start_k in range(first_k, end_k, BLOCK_K):
        k = start_k + lane
        code = codes + k.to(tl.int64)[:, None] * stride_ck
        e_tile = load_tile(code, d, D, stride_cd, origin, (k < K)[:, None])
        product = tl.dot(first_z_tile, tl.trans(e_tile), input_precision=PRODUCTS)
        for start_d in range(BLOCK_D, D, BLOCK_D):
            z_tile = load_tile(z_row, start_d + d, D, stride_zd, origin, row_exists)
            e_tile = load_tile(code, start_d + d, D, stride_cd, origin, (k < K)[:, None])
            product = tl.dot(z_tile, tl.trans(e_tile), product, input_precision=PRODUCTS)
        b = tl.load(bias + k, k < K, other=float("inf"))
        score = b[None, :] - tl.load(scale + k, k < K, other=0.0)[None, :] * product
        closer = score < best  # strict: ties keep the lower index; NaN is never closer
        second = tl.where(closer, best, tl.where(score < second, score, second))
        code_of_best = tl.where(closer, k[None, :], code_of_best)
        best = tl.where(closer, score, best)

    best_of_row, second_of_row, index = smallest_two(best, second, code_of_best)
    entry = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(best_of_split + entry, best_of_row, n < N)
    tl.store(second_of_split + entry, second_of_row, n < N)
    tl.store(code_of_split + entry, index, n < N)

    # Twice the error bound of the scores; every split stores the same number
    norm = tl.sqrt(square)
    longest, longest_scaled, largest_bias = tl.load(largest), tl.load(largest + 1), tl.load(largest + 2)
    underflow = (D + 8) * 1e-24  # of products, times a scale of up to 1e12
    error = 1.01 * relative_error * (norm * longest_scaled + largest_bias) + underflow
    in_range = (1 + norm) * (1 + longest) < 1e37  # nothing overflowed
    tl.store(margin + row, tl.where(in_range, 2 * error, float("inf")), n < N)


@triton.jit
def decide(
    best_of_split, second_of_split, code_of_split, margin, rows, count, indices, is_open,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The code with the smallest score of all splits for BLOCK_N rows, and whether rounding leaves it undecided."""
    N = tl.load(count)
    if tl.program_id(0) * BLOCK_N >= N:
        return
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.load(rows + n, n < N, other=0)
    entry = row[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :]
    row_exists = (n < N)[:, None]
    best, second, index = smallest_two(
        tl.load(best_of_split + entry, row_exists, other=float("inf")),
        tl.load(second_of_split + entry, row_exists, other=float("inf")),
        tl.load(code_of_split + entry, row_exists, other=0),
    )
    settled = second - best > tl.load(margin + row, n < N, other=0.0)
    tl.store(indices + row, index.to(tl.int64), n < N)
    tl.store(is_open + row, ~settled, n < N)


@triton.jit
def search_float64(
    z, codes, rows, count, best_of_split, code_of_split, K, D, stride_zn, stride_zd, stride_ck, stride_cd,
    METRIC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The code of a split with the smallest cost for BLOCK_N rows, and this cost, in float64."""
    N = tl.load(count)
    if tl.program_id(0) * BLOCK_N >= N:
        return
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_K)
    row = tl.load(rows + n, n < N, other=0)
    best = tl.full([BLOCK_N, BLOCK_K], float("inf"), tl.float64)
    code_of_best = tl.zeros([BLOCK_N, BLOCK_K], tl.int32)
    first_k, end_k = range_of_split(K, BLOCK_K)
    for start_k in range(first_k, end_k, BLOCK_K):
        k = start_k + lane
        code = codes + k.to(tl.int64) * stride_ck
        length = tl.full([BLOCK_K], 1.0, tl.float64)
        if METRIC == "cosine":
            square = tl.zeros([BLOCK_K], tl.float64)
            for d in range(D):
                e = tl.load(code + tl.cast(d, tl.int64) * stride_cd, k < K, other=0.0).to(tl.float64)
                square += e * e
            length = tl.maximum(tl.sqrt(square), 1e-12)
        cost = tl.zeros([BLOCK_N, BLOCK_K], tl.float64)
        for d in range(D):
            d_64 = tl.cast(d, tl.int64)
            a = tl.load(z + row * stride_zn + d_64 * stride_zd, n < N, other=0.0).to(tl.float64)[:, None]
            e = tl.load(code + d_64 * stride_cd, k < K, other=0.0).to(tl.float64)[None, :]
            if METRIC == "euclidean":
                cost += (a - e) * (a - e)
            else:
                cost -= a * (e / length[None, :])
        usable = (k < K)[None, :] & (cost > -float("inf"))  # a code that is not finite has a cost that is not finite
        cost = tl.where(usable, cost, float("inf"))
        closer = cost < best
        code_of_best = tl.where(closer, k[None, :], code_of_best)
        best = tl.where(closer, cost, best)
    cost_of_row, index = smallest(best, code_of_best)
    entry = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(best_of_split + entry, cost_of_row, n < N)
    tl.store(code_of_split + entry, index.to(tl.int64), n < N)
