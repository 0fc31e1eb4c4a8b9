"""Differentiable augmentation: real and fake inputs of the discriminator are changed at random in the same way.

Source: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training" (arXiv 2006.10738), section 3;
the ranges are those of its code. With few images, a discriminator memorizes them. If only real images were changed, the
generator would learn to imitate the changes. So both are changed, and the generator's gradient passes through. Unlike
the transforms of `smalti.data`, these augmentations never reach the tokenizer.

Legend: B images, C channels, H x W pixels; u_Bn: n numbers per image, uniform in [0, 1).
"""

from collections.abc import Sequence
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

AugmentationName = Literal["color", "translation", "cutout"]

TRANSLATION = 1 / 8
"""Largest shift, as a fraction of the side."""
CUTOUT = 1 / 2
"""Side of the hole, as a fraction of the image's side."""


def color(image: Float[Tensor, "b c h w"], u_B3: Float[Tensor, "b 3"]) -> Float[Tensor, "b c h w"]:
    """Brightness + (-0.5 to 0.5), then saturation x (0 to 2), then contrast x (0.5 to 1.5), drawn per image."""
    brightness, saturation, contrast = (u_B3[:, k].view(-1, 1, 1, 1) for k in range(3))
    image = image + (brightness - 0.5)
    grey = image.mean(dim=1, keepdim=True)
    image = grey + (image - grey) * (2 * saturation)
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (image - mean) * (contrast + 0.5)


def translation(image: Float[Tensor, "b c h w"], u_B2: Float[Tensor, "b 2"]) -> Float[Tensor, "b c h w"]:
    """Shift each image by up to an eighth of its sides; the border is filled with mid-grey (0)."""
    (rows_BH, inside_BH), (columns_BW, inside_BW) = (
        _shifted(side, u_B2[:, k]) for k, side in enumerate(image.shape[2:])
    )
    batch = torch.arange(image.shape[0], device=image.device).view(-1, 1, 1)
    moved_BHWC = image.movedim(1, -1)[batch, rows_BH.unsqueeze(2), columns_BW.unsqueeze(1)]
    return moved_BHWC.movedim(-1, 1) * (inside_BH.unsqueeze(2) & inside_BW.unsqueeze(1)).unsqueeze(1)


def cutout(image: Float[Tensor, "b c h w"], u_B2: Float[Tensor, "b 2"]) -> Float[Tensor, "b c h w"]:
    """Cut a mid-grey (0) hole, half as high and wide as the image, centred at a random position in the image."""
    hole_BH, hole_BW = (_hole(side, u_B2[:, k]) for k, side in enumerate(image.shape[2:]))
    return image * ~(hole_BH.unsqueeze(2) & hole_BW.unsqueeze(1)).unsqueeze(1)


AUGMENTATIONS = {"color": (color, 3), "translation": (translation, 2), "cutout": (cutout, 2)}
"""Name -> function and its number of random numbers per image, in the order of application."""


@final
class Augmentation:
    """One random draw per image of a batch. Applied to two batches, it changes both in the same way."""

    def __init__(
        self, names: Sequence[str], batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ):
        """Draw the random numbers.

        Args:
            names: which of `AUGMENTATIONS`; empty: images stay unchanged.
            batch_size: images in the batch.
            device: device of the images.
            generator: random generator on the CPU; None: torch's global one.
        """
        self._drawn = [
            (augment, torch.rand(batch_size, count, generator=generator).to(device, non_blocking=True))
            for name, (augment, count) in AUGMENTATIONS.items()
            if name in names
        ]

    def __call__(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The changed images (B, C, H, W); differentiable twice."""
        for augment, u_Bn in self._drawn:
            image = augment(image, u_Bn)
        return image


def _shifted(side: int, u_B: Tensor) -> tuple[Tensor, Tensor]:
    """For each position along a side: its source position (B, side), and whether that is inside the image."""
    most = round(side * TRANSLATION)
    shift_B = (u_B * (2 * most + 1)).long() - most
    source_BS = torch.arange(side, device=u_B.device) + shift_B.unsqueeze(1)
    return source_BS.clamp(0, side - 1), (source_BS >= 0) & (source_BS < side)


def _hole(side: int, u_B: Tensor) -> Tensor:
    """For each position along a side: whether it is in the hole (B, side)."""
    length = round(side * CUTOUT)
    start_B = (u_B * (side + 1)).long() - length // 2
    offset_BS = torch.arange(side, device=u_B.device) - start_B.unsqueeze(1)
    return (offset_BS >= 0) & (offset_BS < length)
