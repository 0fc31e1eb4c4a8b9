"""Group normalisation (Wu & He 2018, arXiv 1803.08494) that trains fast on a CPU, and does not lose digits there.

The gradient of torch's own kernel takes five times as long for channels-last tensors (bf16, torch 2.13) as for others,
which was half of a training step of a VQGAN. Here it is written with sums over whole rows of channels.

Of such tensors torch's kernel takes the variance as mean of squares minus square of the mean, summed in fp32 over the
whole image. Where a group's mean is as large as its deviation that costs three digits, enough to change tokens. With
`exact` such features get their statistics row by row instead, joined in fp64, as long as no gradient is wanted.
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
    """`torch.nn.functional.group_norm`, in value always, and in gradient up to rounding.

    Channels-last features on the CPU have a gradient of their own, computed in fp32 or better.

    Args:
        x: features (B, C, H, W), in any floating-point format.
        num_groups: G, a divisor of C.
        weight: scale of each channel; None: 1.
        bias: shift of each channel; None: 0.
        eps: added to the variance.
        exact: lose no digits; models that were published or saved without it keep their tokens.
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
    """Whether some group's mean exceeds its deviation, by a look at 8 x 8 positions or more."""
    step = max(1, min(x.shape[2:]) // 8)
    sample_BGn = x[:, :, ::step, ::step].reshape(x.shape[0], num_groups, -1)
    deviation_BG, mean_BG = torch.std_mean(sample_BGn, dim=2, correction=0)
    return bool((mean_BG.abs() > deviation_BG).any())


def _by_rows(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The same with statistics of each row by torch's kernel, which over so few numbers is exact enough."""
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
    """y = w x̂ + b with x̂ = (x - μ) r, where mean μ and r = 1 / deviation are those of a group of n numbers."""

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
        if torch.is_grad_enabled():  # somebody wants second derivatives, which torch's own kernel has
            wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
            y = F.group_norm(x, mean_BG.shape[1], weight, bias, context.eps)
            found = dict(zip(map(id, wanted), torch.autograd.grad(y, wanted, gradient, create_graph=True), strict=True))
            return found.get(id(x)), None, found.get(id(weight)), found.get(id(bias)), None
        B, C, H, W = x.shape
        G, wide = mean_BG.shape[1], torch.promote_types(x.dtype, torch.float32)
        # One row a position, its channels side by side in memory / 每个位置一行,其通道在内存中相邻: (B, H*W, C)
        x_BNC, dy_BNC = (t.movedim(1, 3).reshape(B, H * W, C).to(wide) for t in (x, gradient))
        mean_BC, r_BC = (t.to(wide).repeat_interleave(C // G, dim=1) for t in (mean_BG, r_BG))
        weight_C = x.new_ones(C, dtype=wide) if weight is None else weight.to(wide)
        # db = Σ dy and dw = Σ dy x̂ of each channel, image by image / 逐图像、逐通道求和
        db_BC = dy_BNC.sum(1)
        dw_BC = ((dy_BNC * x_BNC).sum(1) - mean_BC * db_BC) * r_BC
        # dx = r (w dy - mean(w dy) - x̂ mean(w dy x̂)), the means over the n numbers of a group / 均值取自同组的 n 个数
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
