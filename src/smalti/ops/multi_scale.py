"""The residual multi-scale step of VAR: one image as a sum of ever finer token maps.

Source: Tian et al. 2024, "Visual Autoregressive Modeling" (arXiv 2404.02905), algorithms 1 and 2. Everything that
walks over scales (training, encoding, decoding, the input of a next-scale generator) is made of two functions:
`to_grid` looks at a latent at one scale, `add_scale` adds the codes of one scale to the latent built so far.

Legend: B images, C channels, H x W full latent, h x w one scale.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def to_grid(f_BCHW: Float[Tensor, "b c H W"], grid: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """See a latent (B, C, H, W) at the scale `grid` = (h, w): each cell is the mean of the area under it."""
    # 缩小:每个格子取其覆盖区域的平均值
    return f_BCHW if f_BCHW.shape[2:] == grid else F.interpolate(f_BCHW, size=grid, mode="area")


def add_scale(
    f_hat_BCHW: Float[Tensor, "b c H W"],
    codes_BChw: Float[Tensor, "b c h w"],
    phi: Callable[[Tensor], Tensor],
) -> Float[Tensor, "b c H W"]:
    """Add one scale: f_hat + phi(upsample(codes)).

    Args:
        f_hat_BCHW: the latent accumulated from all coarser scales, zeros before the first.
        codes_BChw: code vectors of this scale.
        phi: the convolution that repairs what enlarging blurs; (B, C, H, W) to the same shape.
    """
    size = f_hat_BCHW.shape[2:]
    # Enlarge the codes to the full latent (bicubic) unless they have its size already / 放大到完整尺寸(双三次插值)
    if codes_BChw.shape[2:] != size:
        codes_BChw = F.interpolate(codes_BChw, size=size, mode="bicubic")
    # φ smooths, then the result is accumulated / 经过 φ 卷积后累加
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
