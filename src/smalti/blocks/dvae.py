"""Encoder and decoder of DALL-E's discrete VAE: groups of residual blocks with four convolutions, without norms.

Source: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation" (arXiv 2102.12092). Unlike `pyramid.py` it has ReLUs,
bottlenecks of a quarter of the width, residual branches scaled by 1 / (number of blocks)², and max pooling.

Legend: B images, C image channels, K codes, s = 2 ** (groups - 1) the stride.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.blocks.transformer import MOST_BLOCKS
from smalti.checks import at_least, between, expect


@dataclass(frozen=True)
class DVAEConfig:
    """Sizes of one half of a dVAE."""

    width: int = 256
    """Channels at the image's resolution; each halving of the size doubles them."""
    blocks: int = 2
    """Residual blocks per group."""
    groups: int = 4
    """Number of groups; between two groups, the size is halved or doubled."""
    code_width: int = 128
    """Channels after the decoder's first convolution; the encoder ignores them."""

    def __post_init__(self) -> None:
        between(1, MOST_BLOCKS, blocks=self.blocks, groups=self.groups)
        expect(self.width >= 4 and self.width % 4 == 0, "width", self.width, "a multiple of 4")
        at_least(1, code_width=self.code_width)

    @property
    def widths(self) -> list[int]:
        """Channels of each group, from fine to coarse."""
        return [self.width * 2**i for i in range(self.groups)]

    @property
    def gain(self) -> float:
        """Factor of each residual branch."""
        return 1 / (self.groups * self.blocks) ** 2


class BottleneckBlock(nn.Module):
    """shortcut(x) + gain * branch(x); the branch has four convolutions with a ReLU before each."""

    def __init__(self, in_channels: int, out_channels: int, kernels: tuple[int, ...], gain: float):
        super().__init__()
        hidden = out_channels // 4
        sizes = [in_channels, *[hidden] * (len(kernels) - 1), out_channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=kernel, padding=kernel // 2)
            for before, after, kernel in zip(sizes[:-1], sizes[1:], kernels, strict=True)
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.gain = gain

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """(B, C, H, W) to (B, C', H, W)."""
        h = x
        for conv in self.convs:
            h = conv(F.relu(h))
        return torch.add(x if self.shortcut is None else self.shortcut(x), h, alpha=self.gain)


def make_groups(config: DVAEConfig, before: int, widths: list[int], kernels: tuple[int, ...]) -> nn.ModuleList:
    """Groups of blocks; the first group takes `before` channels."""
    return nn.ModuleList(
        nn.Sequential(
            *(BottleneckBlock(before if j == 0 else width, width, kernels, config.gain) for j in range(config.blocks))
        )
        for before, width in zip([before, *widths[:-1]], widths, strict=True)
    )


class DVAEEncoder(nn.Module):
    """Image (B, C, H, W) to a score for each code (B, K, H / s, W / s)."""

    def __init__(self, config: DVAEConfig, image_channels: int, num_codes: int):
        super().__init__()
        self.stem = nn.Conv2d(image_channels, config.width, kernel_size=7, padding=3)
        self.groups = make_groups(config, config.width, config.widths, (3, 3, 3, 1))
        self.conv_out = nn.Conv2d(config.widths[-1], num_codes, kernel_size=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k hs ws"]:
        """(B, C, H, W) to scores (B, K, H / s, W / s); H and W are multiples of s."""
        x = self.stem(image.contiguous(memory_format=torch.channels_last))
        for i, group in enumerate(self.groups):
            x = group(x if i == 0 else F.max_pool2d(x, kernel_size=2))
        return self.conv_out(F.relu(x))


class DVAEDecoder(nn.Module):
    """One-hot codes (B, K, h, w) to an image (B, C, h * s, w * s) with values from 0 to 1."""

    def __init__(self, config: DVAEConfig, image_channels: int, num_codes: int):
        super().__init__()
        self.image_channels = image_channels
        self.stem = nn.Conv2d(num_codes, config.code_width, kernel_size=1)
        self.groups = make_groups(config, config.code_width, config.widths[::-1], (1, 3, 3, 3))
        self.conv_out = nn.Conv2d(config.width, 2 * image_channels, kernel_size=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, z_q: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c H W"]:
        """(B, K, h, w) to means (B, C, h * s, w * s). The other half of the channels, the scales of the logit-Laplace
        distribution, is not used."""
        x = self.stem(z_q.contiguous(memory_format=torch.channels_last))
        for i, group in enumerate(self.groups):
            x = group(x if i == 0 else F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.relu(x))[:, : self.image_channels].sigmoid()
