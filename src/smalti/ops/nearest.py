"""Nearest-code search: the codebook row closest to each vector.

The textbook method computes the N x K matrix of all distances and takes the arg-min. The back ends here process tiles
of the codebook and keep a running minimum, so memory does not grow with N * K. `native.py` is a compiled kernel for
CPUs, `triton_search.py` one for GPUs, `portable.py` is plain torch for everything else. All three give the same result:
fast rounded scores select candidates, an error bound tells which rows are still undecided, float64 decides those.

Legend: N vectors, K codes, D components.
"""

import importlib.util
import itertools
import warnings
from functools import cache
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch._decomp import register_decomposition

from smalti.ops import native, portable

Metric = Literal["euclidean", "cosine", "dot"]
Backend = Literal["auto", "native", "triton", "portable"]
SearchPrecision = Literal["exact", "fast"]


@torch.no_grad()
def nearest_code(
    z_ND: Float[Tensor, "n d"],
    codebook_KD: Float[Tensor, "k d"],
    metric: Metric = "euclidean",
    *,
    backend: Backend = "auto",
    precision: SearchPrecision = "exact",
    check_finite: bool = False,
) -> Int64[Tensor, " n"]:
    """Index of the nearest code for every vector; ties go to the lowest index.

    Inside `torch.compile` and `torch.export` this is one operator, `smalti::nearest_code`, which runs the same code.

    Args:
        z_ND: vectors (N, D), any float dtype (computed in fp32), any strides, N may be 0, D >= 1.
        codebook_KD: codes (K, D), K >= 1.
        metric: "euclidean" (smallest distance), "cosine" (largest cosine; lengths below 1e-12 count as 1e-12) or "dot"
            (largest dot product).
        backend: "native" (compiled, CPU), "triton" (CUDA), "portable" (torch, any device), or "auto": the fastest one
            available. Triton is used only after a check on this device.
        precision: "exact" equals a float64 brute-force search over the fp32 values. With "fast", the Triton back end
            uses TF32 products (10 bits) only and may return any of several almost equally near codes. The other back
            ends have no faster mode and stay exact.
        check_finite: refuse NaN and infinity. Otherwise a vector with one gets index 0 ("fast": any index), and a code
            with one is never the nearest.

    Raises:
        ValueError: unknown metric, back end or precision; no codes; dimensions of vectors and codes that differ or are
            0; an unavailable back end; values that are not finite, with `check_finite`.
    """
    for name, value, allowed in (
        ("metric", metric, get_args(Metric)),
        ("backend", backend, get_args(Backend)),
        ("precision", precision, get_args(SearchPrecision)),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(allowed)}")
    if codebook_KD.shape[0] == 0:
        raise ValueError("codebook_KD: got 0 codes, expected at least 1")
    if z_ND.shape[1] != codebook_KD.shape[1] or z_ND.shape[1] == 0:
        raise ValueError(
            f"z_ND: got vectors of dimension {z_ND.shape[1]}, expected the dimension of the codes, "
            f"{codebook_KD.shape[1]}, and at least 1"
        )
    if torch.jit.is_tracing():
        return portable.nearest_by_scores(z_ND, codebook_KD, metric)
    # Eager calls skip the dispatcher's overhead; only a graph needs the operator.
    search = _operator if torch.compiler.is_compiling() else _search
    return search(z_ND, codebook_KD, metric, backend, precision, check_finite)


def _search(
    z_ND: Tensor, codebook_KD: Tensor, metric: Metric, backend: Backend, precision: SearchPrecision, check_finite: bool
) -> Tensor:
    if check_finite:
        for name, tensor in (("z_ND", z_ND), ("codebook_KD", codebook_KD)):
            if not tensor.isfinite().all():
                raise ValueError(f"{name}: got NaN or infinity, expected finite values")
    z_ND, codebook_KD = _at_most_fp32(z_ND), _at_most_fp32(codebook_KD)
    chosen = _choose(z_ND, codebook_KD) if backend == "auto" else backend
    if chosen == "native":
        _require_native(z_ND, codebook_KD)
        return native.nearest(z_ND, codebook_KD, metric)
    if chosen == "triton":
        if not _has_triton():
            raise ValueError("backend: got 'triton', but Triton is not installed: pip install triton (Linux)")
        from smalti.ops import triton_search  # triton is heavy: imported on first use

        return triton_search.nearest(z_ND, codebook_KD, metric, precision)
    return portable.nearest(z_ND, codebook_KD, metric)


@torch.library.custom_op("smalti::nearest_code", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _operator(
    z_ND: Tensor, codebook_KD: Tensor, metric: str, backend: str, precision: str, check_finite: bool
) -> Tensor:
    return _search(z_ND, codebook_KD, metric, backend, precision, check_finite)  # type: ignore[arg-type]


@_operator.register_fake
def _shape_of_the_result(z_ND: Tensor, *_: object) -> Tensor:
    return z_ND.new_empty(z_ND.shape[0], dtype=torch.int64)


@register_decomposition(torch.ops.smalti.nearest_code.default)
def _decomposition(z_ND: Tensor, codebook_KD: Tensor, metric: str, *_: object) -> Tensor:
    """For export to formats without our operator, such as ONNX. Compiled graphs keep the operator."""
    return portable.nearest_by_scores(z_ND, codebook_KD, metric)


def _choose(z_ND: Tensor, codebook_KD: Tensor) -> Literal["native", "triton", "portable"]:
    """The fastest back end that supports these tensors."""
    if z_ND.device.type == "cuda" and _has_triton():
        return "triton" if _triton_agrees(z_ND.device) else "portable"
    if not _fits_native(z_ND, codebook_KD):
        return "portable"
    if not native.available():
        _say_once_that_there_is_no_kernel()
        return "portable"
    return "native"


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _triton_agrees(device: torch.device) -> bool:
    """Whether the Triton kernels pass `_fault` on this device, else with a warning.

    Checked once per device, before the first search: the versions of Triton, driver and GPU may be incompatible.
    """
    why = _fault("triton", device)
    if why:
        warnings.warn(f"Triton cannot be used on {device} ({why}): code search uses plain torch", RuntimeWarning, 2)
    return not why


def backend_faults(device: torch.device) -> dict[str, str]:
    """Back end → why it cannot be used; "" if it passed a check: "native" on the CPU, the others on this device."""
    triton = _fault("triton", device) if device.type == "cuda" else "needs a CUDA device"
    return {
        "triton": triton if _has_triton() else "not installed",
        "native": _fault("native", torch.device("cpu")) if native.available() else "installed without a C++ compiler",
        "portable": _fault("portable", device),
    }


def _fault(backend: Backend, device: torch.device) -> str:
    """Why a back end cannot be used on this device; "" if it agrees with a matrix product and an arg-min."""
    random = torch.Generator().manual_seed(0)
    for dim, metric in itertools.product((5, 64), get_args(Metric)):
        codebook_KD = torch.randn(300, dim, generator=random)
        z_ND = codebook_KD[:100] + 1e-2 * torch.randn(100, dim, generator=random)
        expected_N = portable.nearest_by_scores(z_ND, codebook_KD, metric)
        try:
            found_N = nearest_code(z_ND.to(device), codebook_KD.to(device), metric, backend=backend)
            if not torch.equal(found_N.cpu(), expected_N):
                return "its result differs from a matrix product's"
        except Exception as error:  # compiler, driver and GPU may raise anything
            return str(error).strip().split("\n")[0] or type(error).__name__
    return ""


def _fits_native(z_ND: Tensor, codebook_KD: Tensor) -> bool:
    return z_ND.device.type == codebook_KD.device.type == "cpu" and z_ND.shape[1] <= native.MAX_DIM


def _require_native(z_ND: Tensor, codebook_KD: Tensor) -> None:
    if not _fits_native(z_ND, codebook_KD):
        raise ValueError(f"backend: got 'native', which needs CPU tensors of dimension 1 to {native.MAX_DIM}")
    if not native.available():
        raise ValueError("backend: got 'native', but smalti was installed without a C++ compiler")


@cache
def _say_once_that_there_is_no_kernel() -> None:
    warnings.warn(
        "smalti was installed without a C++ compiler: code search uses plain torch, which is slower. "
        "Install a C++ compiler and reinstall smalti for the native kernel.",
        RuntimeWarning,
        stacklevel=5,
    )


def _at_most_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor
