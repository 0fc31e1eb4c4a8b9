"""Multi-scale structural similarity as a loss: 1 - MS-SSIM.

Source: Wang, Simoncelli, Bovik 2003, "Multi-scale structural similarity for image quality assessment". Pixel losses
compare values. This loss compares local means, contrasts and correlations in a Gaussian window (11 pixels, sigma 1.5),
at full size, half size, quarter size, ... It is for training; to report SSIM, use `smalti.metrics.ImageQuality`.

The paper's five scales need images of 176 pixels; torchmetrics refuses images below 161. This version has no limit:

- scales: at most five, as long as the shorter side holds a window (32 x 32 has two: 32 and 16). The paper's exponents
  of these scales are divided by their sum, so that they sum to 1.
- if a side is shorter than the window, the window is as long as the side.

多尺度结构相似度损失：1 - MS-SSIM。像素损失比较数值；此损失在高斯窗口内比较局部均值、对比度和相关性，依次在原尺寸、
一半、四分之一……上计算。尺度数取决于图像大小，最多五个；论文中对应的指数除以其和，使总和仍为 1。短于窗口的边使用与
边等长的窗口。

Legend: B images, C channels, H x W pixels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from smalti.ops.device import without_autocast
from smalti.ops.structural_similarity import WINDOW, structural_similarity

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # fine to coarse, the paper's section 3.3
FLOOR = 1e-4  # a correlation can be negative; a factor of 0 would remove the gradient of all other scales


def ms_ssim(reconstruction: Float[Tensor, "b c h w"], image: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """1 - MS-SSIM of two images (B, C, H, W) in [-1, 1]: 0 for equal images, at most 1. Computed in at least fp32.

    Similarities are averaged over pixels per channel and image, multiplied over scales, then averaged over channels and
    images. The similarity of a scale is clamped to at least 1e-4, without gradient below. Values outside [-1, 1] are
    not clamped, so that the decoder gets a gradient there.
    """
    dtype = torch.promote_types(torch.promote_types(reconstruction.dtype, image.dtype), torch.float32)
    # SSIM depends on the black level, so [-1, 1] must first become [0, 1].
    x_BCHW, y_BCHW = (reconstruction.to(dtype) + 1) / 2, (image.to(dtype) + 1) / 2
    exponents = scale_exponents(min(image.shape[2:]))
    product_BC = torch.ones(image.shape[:2], dtype=dtype, device=image.device)
    # Autocast would run the windows in half precision, where E[x^2] - E[x]^2 cancels.
    with without_autocast(image):
        for scale, exponent in enumerate(exponents):
            luminance_BC, contrast_BC = structural_similarity(x_BCHW, y_BCHW)
            # Only the coarsest scale includes luminance.
            similarity_BC = luminance_BC if scale == len(exponents) - 1 else contrast_BC
            product_BC = product_BC * similarity_BC.clamp(min=FLOOR) ** exponent
            if scale < len(exponents) - 1:
                x_BCHW, y_BCHW = F.avg_pool2d(x_BCHW, 2), F.avg_pool2d(y_BCHW, 2)
    return 1 - product_BC.mean()


def scale_exponents(shorter_side: int) -> tuple[float, ...]:
    """Exponents of the scales, fine to coarse, for an image with this shorter side; they sum to 1.

    >>> scale_exponents(16)
    (1.0,)
    """
    count = 1
    while count < len(EXPONENTS) and shorter_side >> count >= WINDOW:
        count += 1
    return tuple(exponent / sum(EXPONENTS[:count]) for exponent in EXPONENTS[:count])
