"""Nearest-code search: which row of the codebook is closest to each vector.

The textbook writes the N x K matrix of all distances and takes its arg-min. No back end here does: tiles of the
codebook pass by a running minimum, so memory does not grow with N * K. `native.py` is a compiled kernel for CPUs,
`portable.py` is plain torch for everything else.

Legend: N vectors, K codes, D components.
"""

import warnings
from functools import cache
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.ops import native, portable

Metric = Literal["euclidean", "cosine", "dot"]
Backend = Literal["auto", "native", "portable"]


@torch.no_grad()
def nearest_code(
    z_ND: Float[Tensor, "n d"],
    codebook_KD: Float[Tensor, "k d"],
    metric: Metric = "euclidean",
    *,
    backend: Backend = "auto",
    check_finite: bool = False,
) -> Int64[Tensor, " n"]:
    """Index of the nearest code of every vector; ties go to the lowest index.

    Args:
        z_ND: vectors (N, D), any float dtype (computed in fp32), any strides, N may be 0.
        codebook_KD: codes (K, D), K >= 1.
        metric: "euclidean" (smallest distance), "cosine" (largest cosine), "dot" (largest dot product).
        backend: "native" (compiled, CPU), "portable" (torch, any device), or "auto": the fastest that can serve.
        check_finite: refuse NaN and infinities; otherwise such vectors get an arbitrary valid index.

    Raises:
        ValueError: unknown metric or backend, no codes, vectors and codes of different dimension, a back end that
            cannot serve, numbers that are not finite where that was asked.
    """
    for name, value, allowed in (("metric", metric, get_args(Metric)), ("backend", backend, get_args(Backend))):
        if value not in allowed:
            raise ValueError(f"{name}: got {value!r}, expected one of {allowed}")
    if codebook_KD.shape[0] == 0:
        raise ValueError("codebook_KD: got 0 codes, expected at least 1")
    if z_ND.shape[1] != codebook_KD.shape[1]:
        raise ValueError(f"z_ND: got vectors of dimension {z_ND.shape[1]}, the codes have {codebook_KD.shape[1]}")
    if check_finite:
        for name, tensor in (("z_ND", z_ND), ("codebook_KD", codebook_KD)):
            if not tensor.isfinite().all():
                raise ValueError(f"{name}: holds NaN or infinite values")
    if _use_native(z_ND, codebook_KD, backend):
        return native.nearest(_at_most_fp32(z_ND), _at_most_fp32(codebook_KD), metric)
    return portable.nearest(z_ND, codebook_KD, metric)


def _use_native(z_ND: Tensor, codebook_KD: Tensor, backend: Backend) -> bool:
    fits = z_ND.device.type == codebook_KD.device.type == "cpu" and 1 <= z_ND.shape[1] <= native.MAX_DIM
    if backend == "native" and not (fits and native.available()):
        why = (
            "smalti was installed without a compiler"
            if fits
            else f"it takes 1 to {native.MAX_DIM} components on the CPU"
        )
        raise ValueError(f"backend: got 'native', but {why}")
    if backend == "portable" or not fits or torch.compiler.is_compiling():  # a graph cannot hold a foreign call
        return False
    if not native.available():
        _say_once_that_there_is_no_kernel()
    return native.available()


@cache
def _say_once_that_there_is_no_kernel() -> None:
    warnings.warn(
        "smalti was installed without a compiler: code search uses plain torch, which is slower. "
        "Install a C++ compiler and reinstall smalti for the native kernel.",
        RuntimeWarning,
        stacklevel=4,
    )


def _at_most_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor
