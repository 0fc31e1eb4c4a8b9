"""Linear layers as the CPU's library can do them: with the GELU in the same pass, with weights rearranged only once.

PyTorch's own layer writes the result of a matrix product in bf16, then reads it to add the bias, then again for the
activation; at the widths of a transformer these passes take a third of the time of the product itself. oneDNN does all
of it while the numbers are in registers. And it multiplies blocks of weights: PyTorch rearranges them in every call,
which takes a third of the time of a product of a few rows. PyTorch does better only in compiled graphs, with the
operators used here.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ROWS_TO_PACK_FP32 = 4
"""From so many rows on packed fp32 weights are faster; for fewer, PyTorch reads the weights as they are."""


def linear(
    x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, *, gelu: bool = False
) -> Float[Tensor, "*b o"]:
    """x · weightᵀ + bias, then with `gelu` its GELU in the tanh form (Hendrycks and Gimpel 2016, arXiv 1606.08415).

    The same numbers either way but for rounding: in one pass, bias and GELU see the sums before they are rounded.

    Args:
        x: (..., i).
        weight: (o, i).
        bias: (o,) or None.
        gelu: whether the activation follows.
    """
    if _in_one_pass(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "tanh")
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


def packed_linear(
    weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, rows: int
) -> Callable[[Tensor], Tensor] | None:
    """The layer x → x · weightᵀ + bias on a rearranged copy of its weights; None where not faster or not offered.

    For a run of many calls without gradients; about ten make up for the rearranging. Another number of rows gives the
    right numbers too, at less speed. Later changes of `weight` go unnoticed.

    Args:
        weight: (o, i).
        bias: (o,) or None.
        rows: of x in a call.
    """
    if not _known_to_onednn(weight) or (weight.dtype == torch.float32 and rows < ROWS_TO_PACK_FP32):
        return None
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _in_one_pass(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes this call."""
    return x.dtype == weight.dtype and _known_to_onednn(x)


def _known_to_onednn(x: Tensor) -> bool:
    """Whether it is on the CPU and of a supported format, without gradients or autocast, which oneDNN ignores."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
