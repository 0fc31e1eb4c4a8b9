"""Multi-scale structural similarity as a loss: 1 - MS-SSIM.

Source: Wang, Simoncelli, Bovik 2003, "Multi-scale structural similarity for image quality assessment". Where pixel
losses compare values, this compares local means, contrasts and correlations under a Gaussian window (11 pixels, sigma
1.5), on the image and on its halves, quarters, ... It is a training term: for a number to report see
`smalti.metrics.ImageQuality`.

The paper's five scales need images of 176 pixels; torchmetrics' version refuses below 161. This one works at any size:

- scales: as many as leave the shorter side at least one window (32 x 32 has two: 32 and 16), at most five. The paper's
  exponents of those scales are divided by their sum, so that the exponents still add up to 1.
- a side shorter than the window gets a window as long as that side.

Legend: B images, C channels, H x W pixels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from smalti.ops.structural_similarity import WINDOW, structural_similarity

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # fine to coarse, the paper's section 3.3
FLOOR = 1e-4  # a correlation can be negative; a factor of 0 there would silence the gradient of all other scales


def ms_ssim(reconstruction: Float[Tensor, "b c h w"], image: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """1 - MS-SSIM of two images (B, C, H, W) in [-1, 1]: 0 for equal images, at most 1. Computed in at least fp32.

    Similarities are averaged over the pixels of each channel of each image, multiplied over the scales, then averaged
    over channels and images. A scale's similarity is held at 1e-4 or above (a constant there: no gradient).
    Values outside [-1, 1] are not clamped, so that a decoder that overshoots is still told.
    """
    dtype = torch.promote_types(torch.promote_types(reconstruction.dtype, image.dtype), torch.float32)
    # SSIM knows where black is, so [-1, 1] must first become [0, 1]: a shift changes the result.
    x_BCHW, y_BCHW = (reconstruction.to(dtype) + 1) / 2, (image.to(dtype) + 1) / 2
    exponents = scale_exponents(min(image.shape[2:]))
    product_BC = torch.ones(image.shape[:2], dtype=dtype, device=image.device)
    # Autocast would run the windows in half precision, and E[x^2] - E[x]^2 cancels.
    with torch.autocast(image.device.type, enabled=False):
        for scale, exponent in enumerate(exponents):
            luminance_BC, contrast_BC = structural_similarity(x_BCHW, y_BCHW)
            # Only the coarsest scale judges brightness too.
            similarity_BC = luminance_BC if scale == len(exponents) - 1 else contrast_BC
            product_BC = product_BC * similarity_BC.clamp(min=FLOOR) ** exponent
            if scale < len(exponents) - 1:
                x_BCHW, y_BCHW = F.avg_pool2d(x_BCHW, 2), F.avg_pool2d(y_BCHW, 2)
    return 1 - product_BC.mean()


def scale_exponents(shorter_side: int) -> tuple[float, ...]:
    """The exponents of the scales, fine to coarse, that an image with this shorter side has; they sum to 1.

    >>> scale_exponents(16)
    (1.0,)
    """
    count = 1
    while count < len(EXPONENTS) and shorter_side >> count >= WINDOW:
        count += 1
    return tuple(exponent / sum(EXPONENTS[:count]) for exponent in EXPONENTS[:count])
