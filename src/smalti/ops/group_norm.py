"""Group normalisation (Wu & He 2018, arXiv 1803.08494) with a fast gradient and accurate statistics on the CPU.

For channels-last tensors, the backward pass of torch's kernel takes five times as long as for others (bf16, torch
2.13), which was half of a VQGAN training step. The gradient here uses sums over whole rows of channels instead.

For such tensors, torch's kernel computes the variance as mean of squares minus square of the mean, summed in fp32 over
the whole image. If a group's mean is as large as its standard deviation, this loses three digits, enough to change
tokens. With `exact`, the statistics of such features are computed per row and joined in fp64, if no gradient is needed.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from smalti.ops.graphs import recording


def group_norm(
    x: Float[Tensor, "b c h w"],
    num_groups: int,
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    exact: bool = False,
) -> Float[Tensor, "b c h w"]:
    """`torch.nn.functional.group_norm`, with equal values, and equal gradients up to rounding.

    Channels-last features on the CPU use a separate gradient, computed in fp32 or better.

    Args:
        x: features (B, C, H, W), in any floating-point format.
        num_groups: G, a divisor of C.
        weight: scale per channel; None: 1.
        bias: shift per channel; None: 0.
        eps: added to the variance.
        exact: use accurate statistics. Off for models that were published or saved without it, to keep their tokens.
    """
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    if x.device.type == "cpu" and channels_last and torch.is_grad_enabled():
        normalised: Tensor = _ChannelsLast.apply(x, num_groups, weight, bias, eps)
        return normalised
    lossy = x.device.type == "cpu" and channels_last and x.dtype == torch.float32 and not recording()
    if exact and lossy and x.numel() and _far_from_zero(x, num_groups):
        return _by_rows(x, num_groups, weight, bias, eps)
    return F.group_norm(x, num_groups, weight, bias, eps)


def _far_from_zero(x: Tensor, num_groups: int) -> bool:
    """Whether any group's mean exceeds its standard deviation, estimated from at least 8 x 8 positions."""
    step = max(1, min(x.shape[2:]) // 8)
    sample_BGn = x[:, :, ::step, ::step].reshape(x.shape[0], num_groups, -1)
    deviation_BG, mean_BG = torch.std_mean(sample_BGn, dim=2, correction=0)
    return bool((mean_BG.abs() > deviation_BG).any())


def _by_rows(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The same with per-row statistics by torch's kernel, which is accurate enough over so few numbers."""
    B, C, H, W = x.shape
    rows = x.movedim(1, 3).reshape(B * H, 1, W, C).movedim(3, 1)
    _, mean_RG, r_RG = torch.native_group_norm(rows, None, None, B * H, C, W, num_groups, 0.0)
    mean_BHG, variance_BHG = (t.double().view(B, H, num_groups) for t in (mean_RG, r_RG.double() ** -2))
    mean_BG = mean_BHG.mean(1)
    variance_BG = (variance_BHG + (mean_BHG - mean_BG[:, None]).square()).mean(1)
    scale_BC = (variance_BG + eps).rsqrt().repeat_interleave(C // num_groups, dim=1)
    scale_BC = scale_BC if weight is None else scale_BC * weight
    shift_BC = -mean_BG.repeat_interleave(C // num_groups, dim=1) * scale_BC
    shift_BC = shift_BC if bias is None else shift_BC + bias
    scale, shift = (t.float()[:, :, None, None] for t in (scale_BC, shift_BC))
    return torch.addcmul(shift, x, scale).contiguous(memory_format=torch.channels_last)


class _ChannelsLast(torch.autograd.Function):
    """y = w x̂ + b with x̂ = (x - μ) r. Mean μ and r = 1 / standard deviation are taken over a group of n numbers."""

    @staticmethod
    def forward(context, x, num_groups, weight, bias, eps):  # type: ignore[no-untyped-def]
        B, C, H, W = x.shape
        y, mean_BG, r_BG = torch.native_group_norm(x, weight, bias, B, C, H * W, num_groups, eps)
        context.save_for_backward(x, weight, bias, mean_BG, r_BG)
        context.eps = eps
        return y

    @staticmethod
    def backward(context, gradient):  # type: ignore[no-untyped-def]
        x, weight, bias, mean_BG, r_BG = context.saved_tensors
        if torch.is_grad_enabled():  # second derivatives are needed, which torch's own kernel provides
            wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
            y = F.group_norm(x, mean_BG.shape[1], weight, bias, context.eps)
            found = dict(zip(map(id, wanted), torch.autograd.grad(y, wanted, gradient, create_graph=True), strict=True))
            return found.get(id(x)), None, found.get(id(weight)), found.get(id(bias)), None
        B, C, H, W = x.shape
        G, wide = mean_BG.shape[1], torch.promote_types(x.dtype, torch.float32)
        # One row per position, channels adjacent in memory: (B, H*W, C)
        x_BNC, dy_BNC = (t.movedim(1, 3).reshape(B, H * W, C).to(wide) for t in (x, gradient))
        mean_BC, r_BC = (t.to(wide).repeat_interleave(C // G, dim=1) for t in (mean_BG, r_BG))
        weight_C = x.new_ones(C, dtype=wide) if weight is None else weight.to(wide)
        # db = Σ dy and dw = Σ dy x̂, per image and channel
        db_BC = dy_BNC.sum(1)
        dw_BC = ((dy_BNC * x_BNC).sum(1) - mean_BC * db_BC) * r_BC
        # dx = r (w dy - mean(w dy) - x̂ mean(w dy x̂)), with means over the n numbers of a group
        n = H * W * C // G
        first_BC, second_BC = (
            ((weight_C * d).view(B, G, -1).sum(2) / n).repeat_interleave(C // G, dim=1) for d in (db_BC, dw_BC)
        )
        slope_BC = -r_BC * r_BC * second_BC
        shift_BC = -r_BC * first_BC - slope_BC * mean_BC
        dx_BNC = dy_BNC * (r_BC * weight_C)[:, None]
        dx_BNC.addcmul_(x_BNC, slope_BC[:, None]).add_(shift_BC[:, None])
        dx = dx_BNC.to(x.dtype).view(B, H, W, C).movedim(3, 1)
        if weight is None:
            return dx, None, None, None, None
        return dx, None, dw_BC.sum(0).to(weight.dtype), db_BC.sum(0).to(weight.dtype), None
