"""Fast linear layers on the CPU by oneDNN: with a fused GELU, and with weights packed only once.

PyTorch's own layer writes the matrix product in bf16, reads it to add the bias, and reads it again for the activation.
At transformer widths these passes take a third of the time of the product. oneDNN does all of it in registers. oneDNN
also multiplies packed weights. PyTorch packs them in every call, which takes a third of the time of a product with few
rows. PyTorch avoids both only in compiled graphs, with the operators used here.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ROWS_TO_PACK_FP32 = 4
"""Packed fp32 weights are faster from this number of rows on; for fewer, PyTorch reads the weights unpacked."""


def linear(
    x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, *, gelu: bool = False
) -> Float[Tensor, "*b o"]:
    """x · weightᵀ + bias, then with `gelu` its GELU in the tanh form (Hendrycks and Gimpel 2016, arXiv 1606.08415).

    Fused and separate computation agree up to rounding: fused, bias and GELU apply to the sums before rounding.

    Args:
        x: (..., i).
        weight: (o, i).
        bias: (o,) or None.
        gelu: whether to apply the activation.
    """
    if _in_one_pass(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "tanh")
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


def packed_linear(
    weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, rows: int
) -> Callable[[Tensor], Tensor] | None:
    """The layer x → x · weightᵀ + bias with a packed copy of the weights; None if not faster or not supported.

    For many calls without gradients: packing pays off after about ten. Another number of rows gives correct results,
    but slower. Later changes of `weight` have no effect.

    Args:
        weight: (o, i).
        bias: (o,) or None.
        rows: number of rows of x per call.
    """
    if not _known_to_onednn(weight) or (weight.dtype == torch.float32 and rows < ROWS_TO_PACK_FP32):
        return None
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _in_one_pass(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN supports this call."""
    return x.dtype == weight.dtype and _known_to_onednn(x)


def _known_to_onednn(x: Tensor) -> bool:
    """Whether x is on the CPU with a supported dtype, without gradients or autocast, which oneDNN ignores."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
