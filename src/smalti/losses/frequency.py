"""Focal frequency loss: the error of each spatial frequency, the worst frequencies first.

Source: Jiang et al. 2021, "Focal Frequency Loss for Image Reconstruction and Synthesis" (arXiv 2012.12821), equations 7
and 8, with alpha = 1 and one patch. By Parseval's theorem the unweighted sum would be the squared error of the pixels, so
all that is new is the weight: frequencies that are already right hardly count.

Legend: B images, C channels, H x W pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def focal_frequency(reconstruction: Float[Tensor, "b c h w"], image: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean over frequencies of weight * |error|^2 of two images (B, C, H, W) in [-1, 1]; 0 for equal images.

    The orthonormal Fourier transform of each channel is compared in at least fp32. The weight of a frequency is the size
    of its error over the largest in that channel, 0 to 1, and carries no gradient.
    """
    dtype = torch.promote_types(torch.promote_types(reconstruction.dtype, image.dtype), torch.float32)
    error_BCHW = torch.fft.fft2(reconstruction.to(dtype) - image.to(dtype), norm="ortho")
    power_BCHW = error_BCHW.real.square() + error_BCHW.imag.square()
    weight_BCHW = power_BCHW.detach().sqrt()
    largest = weight_BCHW.amax(dim=(2, 3), keepdim=True).clamp(min=torch.finfo(dtype).tiny)
    return (weight_BCHW / largest * power_BCHW).mean()
