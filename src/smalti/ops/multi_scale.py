"""The residual multi-scale step of VAR: an image is a sum of token maps, coarse to fine.

Source: Tian et al. 2024, "Visual Autoregressive Modeling" (arXiv 2404.02905), algorithms 1 and 2. Training, encoding,
decoding and the input of a next-scale generator all use the same two functions: `to_grid` reduces a latent to one
scale, `add_scale` adds the codes of one scale to the accumulated latent.
VAR 的残差多尺度步骤：图像是由粗到细的词元图之和。训练、编码、解码以及下一尺度生成器的输入都使用同样两个函数：
`to_grid` 把潜变量缩小到某个尺度，`add_scale` 把该尺度的码字加到已累加的潜变量上。

Legend: B images, C channels, H x W full latent, h x w one scale.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Upsampling = Literal["bicubic", "bilinear"]


def to_grid(f_BCHW: Float[Tensor, "b c H W"], grid: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Reduce a latent (B, C, H, W) to the scale `grid` = (h, w): each cell is the mean of the area that it covers."""
    # Mean of the covered area / 每个格子取其覆盖区域的平均值
    return f_BCHW if f_BCHW.shape[2:] == grid else F.interpolate(f_BCHW, size=grid, mode="area")


def add_scale(
    f_hat_BCHW: Float[Tensor, "b c H W"],
    codes_BChw: Float[Tensor, "b c h w"],
    phi: Callable[[Tensor], Tensor],
    upsampling: Upsampling = "bicubic",
) -> Float[Tensor, "b c H W"]:
    """Add one scale: f_hat + phi(upsample(codes)).

    Args:
        f_hat_BCHW: the latent accumulated from all coarser scales, zeros before the first.
        codes_BChw: code vectors of this scale.
        phi: the convolution that restores detail lost in upsampling; (B, C, H, W) to the same shape.
        upsampling: "bicubic" (VAR) or "bilinear" (Infinity).
    """
    size = f_hat_BCHW.shape[2:]
    # Upsample the codes to the size of the latent / 把码字放大到潜变量的尺寸
    if codes_BChw.shape[2:] != size:
        codes_BChw = F.interpolate(codes_BChw, size=size, mode=upsampling)
    # Apply φ, then accumulate / 经过 φ 卷积，然后累加
    return f_hat_BCHW + phi(codes_BChw)


def proportional_grids(patch_nums: Sequence[int], height: int, width: int) -> tuple[tuple[int, int], ...]:
    """The scales of a latent of `height` x `width`, in proportion to the trained square sides `patch_nums`.

    Side k is max(1, round(patch_nums[k] / patch_nums[-1] * side)); the last scale is the latent itself.

    >>> proportional_grids((1, 2, 4), 4, 8)
    ((1, 2), (2, 4), (4, 8))
    """

    def side(k: int, full: int) -> int:
        return max(1, round(patch_nums[k] / patch_nums[-1] * full))

    coarse = tuple((side(k, height), side(k, width)) for k in range(len(patch_nums) - 1))
    return (*coarse, (height, width))
