"""Nearest codes on the CPU by our C++ kernel (`csrc/search.h` tells the method).

Neighbours: the portable back end runs on any device and without a compiler; this one is the fast one on CPUs. Its
answer is that of a float64 brute force over the float32 numbers, ties to the lowest index, whatever the data.

Memory beside the inputs and the result stays under 64 MB at any size: rows and codes are taken in parts.
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
except ImportError:  # installed without a compiler: the portable back end serves
    _native = None

METRICS = ("euclidean", "cosine", "dot")
MAX_DIM = 32768
PART = 2**20  # numbers of z or of the codebook in one part: 4 MB
CACHE_BYTES = 16 * 2**20


def available() -> bool:
    """Whether the kernel was compiled when smalti was installed."""
    return _native is not None


def nearest(
    z_ND: Float[Tensor, "N D"],
    codebook_KD: Float[Tensor, "K D"],
    metric: Literal["euclidean", "cosine", "dot"] = "euclidean",
    packed: "PackedCodebook | None" = None,
) -> Int64[Tensor, " N"]:
    """For every row of z the index of its nearest code.

    Args:
        z_ND: float32, or float16 / bfloat16, which are converted part by part. On the CPU; any strides.
        codebook_KD: K >= 1 codes; types as for z. Packed codebooks are kept and found again by their content.
        metric: "euclidean" distance, "cosine" similarity (lengths below 1e-12 count as 1e-12) or "dot" product.
        packed: made from this codebook with this metric; saves looking whether it has changed.

    A row with a NaN or an infinity has index 0; a code with one is never the nearest.
    """
    (N, D), K = z_ND.shape, codebook_KD.shape[0]
    _check(z_ND, codebook_KD, metric)
    if packed is not None and (packed.metric, packed.shape) != (metric, (K, D)):
        raise ValueError(f"packed must be of a {metric} codebook {(K, D)}, got {packed.metric} {packed.shape}")
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
    """A codebook laid out for the kernel, for callers who know that it does not change. Made by `pack`."""

    metric: str
    """What it was packed for."""
    shape: tuple[int, int]
    """K and D."""
    parts: tuple[Any, ...]
    """The kernel's own objects, one for each part of the codes."""


def pack(
    codebook_KD: Float[Tensor, "K D"], metric: Literal["euclidean", "cosine", "dot"] = "euclidean"
) -> PackedCodebook:
    """Lays out a codebook for `nearest(..., packed=)`; takes as much memory as the codebook in float32."""
    _check(codebook_KD, codebook_KD, metric)
    K, D = codebook_KD.shape
    step, threads = max(PART // D, 1), torch.get_num_threads()
    parts = (_array(codebook_KD.detach()[code : code + step]) for code in range(0, K, step))
    packed = tuple(_native.PackedCodebook(codes, METRICS.index(metric), threads) for codes in parts)
    return PackedCodebook(metric, (K, D), packed)


class _Cache:
    """The packed codebooks of the last calls, keyed by a fingerprint of their numbers.

    Version counters and addresses do not tell whether a tensor has changed (`.data`, NumPy, inference mode); its
    numbers do, and reading them once costs a small part of packing.
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
        raise ValueError(f"codebook must hold at least one code of z's dimension, 1 to {MAX_DIM}, got {shapes}")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, got {metric!r}")
    for name, tensor in (("z", z_ND), ("codebook", codebook_KD)):
        if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(
                f"{name} must be float32, float16 or bfloat16 on the CPU, got {tensor.dtype} on {tensor.device}"
            )


def _array(tensor: Tensor) -> Any:
    return tensor.to(torch.float32).contiguous().numpy()
