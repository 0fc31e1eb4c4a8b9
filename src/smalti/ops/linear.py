"""A linear layer and the GELU after it, in one pass over the result where the CPU's library offers that.

PyTorch's own layer writes the result of a matrix product in bf16, then reads it to add the bias, then again for the
activation; at the widths of a transformer these passes take a third of the time of the product itself. oneDNN does all
of it while the numbers are in registers. PyTorch calls it so only in compiled graphs, with the operator used here.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


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


def _in_one_pass(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes this call: on the CPU, without gradients or autocast, of which it knows nothing."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if x.dtype != weight.dtype or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
