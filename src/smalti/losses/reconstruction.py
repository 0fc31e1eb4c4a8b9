"""Pixel losses between a reconstruction and its image.

All three are means over every element, so their size does not depend on batch size, image size or channels. They treat
large errors differently: `l2` squares them (blurry, high PSNR), `l1` does not (sharper edges). `charbonnier` is `l1`
smoothed near zero, so its gradient has no jump there. `ms_ssim` compares structure instead of pixels.

像素损失：逐像素比较重建与图像。三种损失都对所有元素取均值，因此不依赖批大小、图像尺寸和通道数。`l2` 对误差取平方（
较模糊，PSNR 高），`l1` 不取平方（边缘更清晰），`charbonnier` 是在零附近平滑的 `l1`，梯度没有跳变。`ms_ssim` 比较的
是结构而不是像素。
"""

import torch
from jaxtyping import Float
from torch import Tensor

CHARBONNIER_EPS = 1e-3
"""eps of Charbonnier's loss, in units of the range [-1, 1]; as in Lai et al. 2017."""


def l1(reconstruction: Float[Tensor, "b c h w"], image: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean absolute error of two images (B, C, H, W) in [-1, 1], computed in at least fp32."""
    return _difference(reconstruction, image).abs().mean()


def l2(reconstruction: Float[Tensor, "b c h w"], image: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean squared error of two images (B, C, H, W) in [-1, 1], computed in at least fp32."""
    return _difference(reconstruction, image).square().mean()


def charbonnier(reconstruction: Float[Tensor, "b c h w"], image: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean of sqrt(error^2 + eps^2), eps = 1e-3, of two images (B, C, H, W) in [-1, 1], computed in at least fp32.

    Equal images have a loss of eps. Source: Charbonnier et al. 1994; Lai et al. 2017 (arXiv 1704.03915), section 3.
    """
    return (_difference(reconstruction, image).square() + CHARBONNIER_EPS**2).sqrt().mean()


def _difference(reconstruction: Tensor, image: Tensor) -> Tensor:
    """The error in at least fp32: a mean over a million bf16 numbers keeps only two digits."""
    dtype = torch.promote_types(torch.promote_types(reconstruction.dtype, image.dtype), torch.float32)
    return reconstruction.to(dtype) - image.to(dtype)
