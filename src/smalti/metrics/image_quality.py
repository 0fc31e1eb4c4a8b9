"""PSNR and SSIM of reconstructions, independent of the batch size.

Definitions:

- both images are first rounded to uint8, as in a saved file; range 255;
- PSNR and SSIM are computed per image and averaged over images (not: one PSNR of the mean error);
- the PSNR of an exact reconstruction is infinite: it is left out of the mean and counted in `exact_images`;
- SSIM uses an 11 x 11 Gaussian window (sigma 1.5) with reflected borders, as in torchmetrics. Images with a side below
  11 pixels have no SSIM: they are left out of the mean. `ssim_images` is the number of images in the mean.

Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity". The differentiable
version for training is `smalti.losses.ms_ssim`.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from smalti.ops.pixels import to_uint8
from smalti.ops.structural_similarity import WINDOW, structural_similarity

SSIM_WINDOW = WINDOW
"""Images with a side below this have no SSIM."""

Image = Float[Tensor, "b c h w"] | UInt8[Tensor, "b c h w"]
"""(B, C, H, W), float in [-1, 1] or uint8."""


def psnr(reconstruction: Image, image: Image) -> Float[Tensor, " b"]:
    """PSNR in dB per image, both rounded to uint8; infinite if they are equal.

    Args:
        reconstruction: (B, C, H, W), float in [-1, 1] (clamped) or uint8.
        image: same shape, either dtype.
    """
    a, b = _rounded(reconstruction).double(), _rounded(image).double()
    return (2 * math.log(255) - (a - b).square().mean(dim=(1, 2, 3)).log()) * (10 / math.log(10))


def ssim(reconstruction: Image, image: Image) -> Float[Tensor, " b"]:
    """SSIM per image, both rounded to uint8, averaged over channels and pixels.

    Raises:
        ValueError: a side of the images is below 11 pixels.
    """
    height, width = image.shape[2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"image: got {height} x {width}, expected at least {SSIM_WINDOW} x {SSIM_WINDOW} for SSIM")
    borders = [SSIM_WINDOW // 2] * 4
    a, b = (F.pad(_rounded(x).double() / 255, borders, mode="reflect") for x in (reconstruction, image))
    return structural_similarity(a, b)[0].mean(dim=1).float()


def mean_color(image: Image) -> UInt8[Tensor, "b c h w"]:
    """Each image filled with its mean colour: the trivial baseline for a reconstruction."""
    rounded = _rounded(image)
    mean = rounded.double().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8)
    return mean.expand_as(rounded)


class ImageQuality:
    """Collects PSNR and SSIM over a set of images: `update` with batches of any size, then `compute`."""

    def __init__(self) -> None:
        self._psnr: list[float] = []
        self._psnr_mean_color: list[float] = []
        self._ssim: list[float] = []

    def update(self, reconstruction: Image, image: Image) -> None:
        """Add a batch of reconstructions and their images, (B, C, H, W) each, float in [-1, 1] or uint8.

        Raises:
            ValueError: a reconstruction has a value that is not finite, which rounding would hide.
        """
        if image.shape[0] == 0:
            return
        if not torch.isfinite(reconstruction).all():
            raise ValueError("reconstruction: got NaN or infinity, expected values in [-1, 1]")
        self._psnr += psnr(reconstruction, image).tolist()
        self._psnr_mean_color += psnr(mean_color(image), image).tolist()
        if min(image.shape[2:]) >= SSIM_WINDOW:
            self._ssim += ssim(reconstruction, image).tolist()

    def compute(self) -> dict[str, float | int | None]:
        """The means over all images so far.

        Returns:
            `images`; `psnr`, `exact_images` (left out of `psnr`); `ssim`, `ssim_images` (number of images in `ssim`);
            `psnr_mean_color`, the PSNR of `mean_color`. A mean over no image is None.
        """
        return {
            "images": len(self._psnr),
            "psnr": _mean_of_finite(self._psnr),
            "psnr_mean_color": _mean_of_finite(self._psnr_mean_color),
            "exact_images": sum(math.isinf(value) for value in self._psnr),
            "ssim": _mean_of_finite(self._ssim),
            "ssim_images": len(self._ssim),
        }


def _mean_of_finite(values: list[float]) -> float | None:
    finite = [value for value in values if not math.isinf(value)]
    return math.fsum(finite) / len(finite) if finite else None


def _rounded(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else to_uint8(image)
