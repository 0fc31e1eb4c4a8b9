"""Pixel losses: how far a reconstruction is from its image, pixel by pixel.

All three are means over every element, so their size does not depend on the batch, the image size or the channels.
They differ in how they treat large errors: `l2` squares them (blurry, high PSNR), `l1` does not (sharper edges),
`charbonnier` is `l1` with a round tip, so its gradient does not jump where the error is zero. For structure instead
of pixels see `ms_ssim`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

CHARBONNIER_EPS = 1e-3
"""Where Charbonnier's loss turns from square to absolute, in units of the range [-1, 1]; as in Lai et al. 2017."""


def l1(reconstruction: Float[Tensor, "b c h w"], image: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean absolute error of two images (B, C, H, W) in [-1, 1], computed in at least fp32."""
    return _difference(reconstruction, image).abs().mean()


def l2(reconstruction: Float[Tensor, "b c h w"], image: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean squared error of two images (B, C, H, W) in [-1, 1], computed in at least fp32."""
    return _difference(reconstruction, image).square().mean()


def charbonnier(reconstruction: Float[Tensor, "b c h w"], image: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean of sqrt(error^2 + eps^2), eps = 1e-3, of two images (B, C, H, W) in [-1, 1], computed in at least fp32.

    Equal images cost eps, not 0. Source: Charbonnier et al. 1994; Lai et al. 2017 (arXiv 1704.03915), section 3.
    """
    return (_difference(reconstruction, image).square() + CHARBONNIER_EPS**2).sqrt().mean()


def _difference(reconstruction: Tensor, image: Tensor) -> Tensor:
    """The error in fp32 or better: a mean over a million bf16 numbers would keep two digits."""
    dtype = torch.promote_types(torch.promote_types(reconstruction.dtype, image.dtype), torch.float32)
    return reconstruction.to(dtype) - image.to(dtype)
