"""Layers that halve or double the resolution of features, in the variants of published tokenizers.

    Downsample   "conv" (strided, padded below and right), "conv-symmetric" (strided, padded all around), "pool"
    Upsample     "conv" (repeat pixels, then convolve), "nearest" (repeat only), "depth-to-space" (channels to pixels)

Legend: B images, C channels, H x W features.
"""

from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

DownsampleKind = Literal["conv", "conv-symmetric", "pool"]
UpsampleKind = Literal["conv", "nearest", "depth-to-space"]


def downsample_kind(name: str) -> DownsampleKind:
    """The name, checked: a way to halve the size in an encoder."""
    for kind in get_args(DownsampleKind):
        if name == kind:
            return kind
    raise ValueError(f"resample: got {name!r}, expected one of {', '.join(get_args(DownsampleKind))} in an encoder")


def upsample_kind(name: str) -> UpsampleKind:
    """The name, checked: a way to double the size in a decoder."""
    for kind in get_args(UpsampleKind):
        if name == kind:
            return kind
    raise ValueError(f"resample: got {name!r}, expected one of {', '.join(get_args(UpsampleKind))} in a decoder")


class Downsample(nn.Module):
    """Features (B, C, H, W) to (B, C, H / 2, W / 2)."""

    def __init__(self, channels: int, kind: DownsampleKind = "conv"):
        super().__init__()
        self.kind = kind
        padding = 1 if kind == "conv-symmetric" else 0
        self.conv = None if kind == "pool" else nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=padding)

    def forward(self, x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        """(B, C, H, W) to (B, C, H / 2, W / 2); H and W are even."""
        if self.conv is None:
            return F.avg_pool2d(x, kernel_size=2)
        return self.conv(x if self.kind == "conv-symmetric" else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Features (B, C, H, W) to (B, C, 2 H, 2 W)."""

    def __init__(self, channels: int, kind: UpsampleKind = "conv"):
        super().__init__()
        self.kind = kind
        width = 4 * channels if kind == "depth-to-space" else channels
        self.conv = None if kind == "nearest" else nn.Conv2d(channels, width, kernel_size=3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c H W"]:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        if self.kind == "depth-to-space":
            assert self.conv is not None
            return depth_to_space(self.conv(x))
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


def depth_to_space(x: Float[Tensor, "b c4 h w"]) -> Float[Tensor, "b c H W"]:
    """(B, 4 C, H, W) to (B, C, 2 H, 2 W): channel (2 i + j) C + c becomes row i, column j of each 2x2 square.

    `nn.PixelShuffle` has another order of channels, 4 c + 2 i + j; weights trained with one do not fit the other.
    """
    batch, channels, height, width = x.shape
    squares = x.reshape(batch, 2, 2, channels // 4, height, width)
    return squares.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // 4, 2 * height, 2 * width)
