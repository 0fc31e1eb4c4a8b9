"""Structural similarity (SSIM): compares local means, contrasts and correlations of two images in a Gaussian window.

Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity". The loss
(`losses/ms_ssim.py`) and the metric (`metrics/image_quality.py`) both use it.

Legend: B images, C channels, H x W pixels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03


def structural_similarity(
    x_BCHW: Float[Tensor, "b c h w"], y_BCHW: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
    """SSIM per channel of two images (B, C, H, W) in [0, 1], and its contrast-structure term, (B, C) each.

    Both are means over the pixels whose window (11 x 11, sigma 1.5) is inside the image. If a side is shorter than 11,
    the window is as long as the side.
    """
    mu_x, mu_y = _blur(x_BCHW), _blur(y_BCHW)
    var_x = _blur(x_BCHW * x_BCHW) - mu_x * mu_x
    var_y = _blur(y_BCHW * y_BCHW) - mu_y * mu_y
    cov = _blur(x_BCHW * y_BCHW) - mu_x * mu_y
    contrast = (2 * cov + K2**2) / (var_x + var_y + K2**2)
    luminance = (2 * mu_x * mu_y + K1**2) / (mu_x * mu_x + mu_y * mu_y + K1**2)
    return (luminance * contrast).mean(dim=(2, 3)), contrast.mean(dim=(2, 3))


def _blur(x_BCHW: Tensor) -> Tensor:
    """Gaussian mean without padding, as two one-dimensional passes."""
    channels, height, width = x_BCHW.shape[1:]
    rows, columns = _window(height, x_BCHW), _window(width, x_BCHW)
    x_BCHW = F.conv2d(x_BCHW, rows.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(x_BCHW, columns.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def _window(side: int, like: Tensor) -> Tensor:
    length = min(WINDOW, side)
    offsets = torch.arange(length, dtype=like.dtype, device=like.device) - (length - 1) / 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    return weights / weights.sum()
