"""PatchGAN: a network that classifies every patch of an image as real or fake.

Source: Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks" (arXiv 1611.07004),
section 3.2 and appendix 6.1.2. Strided convolutions halve the size `num_layers` times, and two convolutions at stride 1
follow: with three layers, the receptive field of each logit is 70 x 70 pixels. Classifying patches instead of whole
images needs few weights and rewards texture, which a pixel loss neglects.

Legend: B images, C channels, H x W pixels, h x w patches.
"""

from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalise_spectrum

from smalti.blocks.convolutional import make_norm
from smalti.checks import at_least

INITIAL_STD = 0.02
"""Standard deviation of initial weights, as in the paper."""


@final
class PatchDiscriminator(nn.Module):
    """Images (B, C, H, W) of any size to logits (B, 1, h, w); above 0 means real.

    >>> PatchDiscriminator(hidden_dim=16)(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 1, 2, 2])
    """

    def __init__(
        self,
        image_channels: int = 3,
        hidden_dim: int = 64,
        num_layers: int = 3,
        norm: str = "group",
        spectral_norm: bool = False,
    ):
        """
        Args:
            image_channels: channels of the images, 3 for colour, 1 for grey.
            hidden_dim: channels after the first layer; each layer doubles them, up to a factor of 8.
            num_layers: number of layers that halve the size.
            norm: "group", "batch" or "none". The paper has batch normalisation, whose result for an image depends on
                the rest of the batch. Group normalisation treats each image alone, so nothing depends on the batch size
                or on the number of processes.
            spectral_norm: whether each kernel is divided by its largest singular value (Miyato et al. 2018, arXiv
                1802.05957), which bounds the gradient of the logits.
        """
        super().__init__()
        at_least(1, image_channels=image_channels, hidden_dim=hidden_dim, num_layers=num_layers)
        widths = [hidden_dim * min(2**level, 8) for level in range(num_layers + 1)]
        strides = [2] * num_layers + [1]
        layers: list[nn.Module] = []
        channels = image_channels
        for level, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            layers.append(nn.Conv2d(channels, width, kernel_size=4, stride=stride, padding=1))
            if level > 0:  # a norm after the first layer would remove brightness and contrast
                layers.append(make_norm(norm, width))
            layers.append(nn.LeakyReLU(0.2))
            channels = width
        layers.append(nn.Conv2d(channels, 1, kernel_size=4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.image_channels = image_channels
        self.least_side = 3 * 2**num_layers
        """Shortest side that gives a logit: each of the two convolutions at stride 1 shortens the side by 1."""
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=INITIAL_STD)
                if spectral_norm:
                    normalise_spectrum(layer)

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 _ _"]:
        """Logits (B, 1, h, w) of images (B, C, H, W) in [-1, 1]. Images that are too small are padded by repetition.

        Raises:
            ValueError: images with another number of channels.
        """
        if image.shape[1] != self.image_channels:
            raise ValueError(f"image: got {image.shape[1]} channels, expected {self.image_channels}")
        below, right = (max(0, self.least_side - side) for side in image.shape[2:])
        return self.layers(F.pad(image, (0, right, 0, below), mode="replicate") if below or right else image)
