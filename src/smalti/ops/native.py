"""Nearest codes on the CPU by our C++ kernel (the method is described in `csrc/search.h`).

The portable back end runs on any device and without a compiler; this one is faster on CPUs. The result always equals a
float64 brute-force search over the float32 values. Ties go to the lowest index.

Besides inputs and result it needs less than 64 MB at any size: rows and codes are processed in parts.
"""

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

try:
    from smalti.ops import _native  # type: ignore[attr-defined]  # compiled from csrc/ when smalti is installed
except ImportError:  # installed without a compiler: the portable back end is used
    _native = None

METRICS = ("euclidean", "cosine", "dot")
MAX_DIM = 32768
PART = 2**20  # numbers of z or of the codebook in one part: 4 MB
CACHE_BYTES = 16 * 2**20


def available() -> bool:
    """Whether the kernel was compiled when smalti was installed."""
    return _native is not None


def kernel() -> str:
    """Name of the fastest kernel that this processor can run, such as "avx2"; "" if none was compiled."""
    return _native.kernels()[0] if _native is not None else ""


def nearest(
    z_ND: Float[Tensor, "N D"],
    codebook_KD: Float[Tensor, "K D"],
    metric: Literal["euclidean", "cosine", "dot"] = "euclidean",
    packed: "PackedCodebook | None" = None,
) -> Int64[Tensor, " N"]:
    """Index of the nearest code for every row of z.

    Args:
        z_ND: float32, or float16 / bfloat16, which are converted part by part. On the CPU; any strides.
        codebook_KD: K >= 1 codes; dtypes as for z. Packed codebooks are cached by their content.
        metric: "euclidean" distance, "cosine" similarity (lengths below 1e-12 count as 1e-12) or "dot" product.
        packed: made from this codebook with this metric; saves the check for changes.

    A row with NaN or infinity gets index 0; a code with NaN or infinity is never the nearest.
    """
    (N, D), K = z_ND.shape, codebook_KD.shape[0]
    _check(z_ND, codebook_KD, metric)
    if packed is not None and (packed.metric, packed.shape) != (metric, (K, D)):
        raise ValueError(f"packed: got {packed.metric} {packed.shape}, expected {metric} {(K, D)}")
    z_ND, codebook_KD = z_ND.detach(), codebook_KD.detach()
    indices_N = torch.zeros(N, dtype=torch.int64, device="cpu")
    threads = int(min(torch.get_num_threads(), 1 + N * K * D // 2_000_000))
    step = max(PART // D, 1)
    for row in range(0, N, step):
        rows = slice(row, row + step)
        z = _array(z_ND[rows])
        cost = torch.full((z.shape[0],), torch.inf, dtype=torch.float64, device="cpu").numpy()
        for code in range(0, K, step):
            codes = _array(codebook_KD[code : code + step])
            part = packed.parts[code // step] if packed is not None else _cache.get(codes, metric, threads)
            part.search(codes, z, cost, indices_N[rows].numpy(), code, threads)
    return indices_N


@dataclass(frozen=True)
class PackedCodebook:
    """A codebook packed for the kernel, for callers who know that it does not change. Made by `pack`."""

    metric: str
    """Metric that it was packed for."""
    shape: tuple[int, int]
    """K and D."""
    parts: tuple[Any, ...]
    """The kernel's own objects, one per part of the codes."""


def pack(
    codebook_KD: Float[Tensor, "K D"], metric: Literal["euclidean", "cosine", "dot"] = "euclidean"
) -> PackedCodebook:
    """Pack a codebook for `nearest(..., packed=)`. Takes as much memory as the codebook in float32."""
    _check(codebook_KD, codebook_KD, metric)
    K, D = codebook_KD.shape
    step, threads = max(PART // D, 1), torch.get_num_threads()
    parts = (_array(codebook_KD.detach()[code : code + step]) for code in range(0, K, step))
    packed = tuple(_native.PackedCodebook(codes, METRICS.index(metric), threads) for codes in parts)
    return PackedCodebook(metric, (K, D), packed)


class _Cache:
    """Packed codebooks of the last calls, with a hash of their values as key.

    Version counters and addresses do not show every change of a tensor (`.data`, NumPy, inference mode). The values do,
    and reading them once takes a small fraction of the packing time.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._parts: OrderedDict[tuple, Any] = OrderedDict()
        self._lock = Lock()

    def get(self, codes: Any, metric: str, threads: int) -> Any:
        key = (metric, codes.shape, _native.fingerprint(codes))
        with self._lock:
            part = self._parts.get(key)
            if part is not None:
                self._parts.move_to_end(key)
                return part
        part = _native.PackedCodebook(codes, METRICS.index(metric), threads)
        with self._lock:
            self._parts[key] = part
            while sum(p.nbytes for p in self._parts.values()) > self._max_bytes:
                self._parts.popitem(last=False)
        return part


_cache = _Cache(CACHE_BYTES)


def _check(z_ND: Tensor, codebook_KD: Tensor, metric: str) -> None:
    D = z_ND.shape[1]
    if codebook_KD.shape[0] == 0 or codebook_KD.shape[1] != D or not 1 <= D <= MAX_DIM:
        shapes = f"{tuple(codebook_KD.shape)} for z {tuple(z_ND.shape)}"
        raise ValueError(f"codebook: got {shapes}, expected at least one code of z's dimension, 1 to {MAX_DIM}")
    if metric not in METRICS:
        raise ValueError(f"metric: got {metric!r}, expected one of {', '.join(METRICS)}")
    for name, tensor in (("z", z_ND), ("codebook", codebook_KD)):
        if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(
                f"{name}: got {tensor.dtype} on {tensor.device}, expected float32, float16 or bfloat16 on the CPU"
            )


def _array(tensor: Tensor) -> Any:
    return tensor.to(torch.float32).contiguous().numpy()
