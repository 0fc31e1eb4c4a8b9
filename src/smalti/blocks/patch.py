"""Encoder and decoder that work on patches: no layer runs at the image's own resolution.

The encoder cuts the image into patches and turns each into a vector of pixels (space-to-depth); the decoder turns
vectors into patches again (Shi et al. 2016, arXiv 1609.05158). Between them are blocks of ConvNeXt (Liu et al. 2022,
arXiv 2201.03545): a depthwise convolution mixes neighbours, two linear layers mix channels. On a CPU, such a block is
almost only matrix products; networks that start at full resolution (`convolutional.py`, `pyramid.py`) spend most of
their time there. Transposed convolutions, which leave a visible grid in flat areas, are avoided. For the same reason,
each layer before a rearrangement starts with equal weights for all pixels of a square (Aitken et al. 2017, arXiv
1707.02937).

The memory layout of features is (B, H, W, C), so linear layers need no copy.

Legend: B images, H x W positions, C channels, D embedding_dim, p patch, s = p * 2 ** (levels - 1) the stride.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.checks import at_least


@dataclass(frozen=True)
class PatchConfig:
    """Sizes of an encoder or a decoder. The first level has stride `patch`; each further level doubles the stride."""

    patch: int = 4
    """Side length of the first level's patches, in pixels."""
    widths: tuple[int, ...] = (64, 192)
    """Channels at each level."""
    blocks: tuple[int, ...] = (1, 4)
    """Blocks at each level."""
    kernel_size: int = 5
    """Kernel size of the depthwise convolutions; odd."""
    expansion: int = 3
    """Hidden channels of a block, as a multiple of its width."""

    def __post_init__(self) -> None:
        at_least(1, patch=self.patch, expansion=self.expansion)
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths: got {self.widths}, expected at least one level of at least 1 channel")
        if len(self.blocks) != len(self.widths) or min(self.blocks) < 0:
            raise ValueError(f"blocks: got {self.blocks}, expected {len(self.widths)} numbers of at least 0")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {self.kernel_size}, expected an odd number of at least 1")

    @property
    def stride(self) -> int:
        """Side length of one latent cell in pixels."""
        return self.patch * 2 ** (len(self.widths) - 1)


class PatchEncoder(nn.Module):
    """Image (B, C, H, W) to latent (B, D, H / s, W / s); H and W are multiples of s."""

    def __init__(self, config: PatchConfig, image_channels: int, embedding_dim: int):
        super().__init__()
        layers: list[nn.Module] = [
            ToPatches(config.patch),
            PositionConv(config.patch**2 * image_channels, config.widths[0], 3),
        ]
        for level, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
            if level:
                layers += [ToPatches(2), nn.Linear(4 * config.widths[level - 1], width)]
            layers += [PatchBlock(width, config) for _ in range(count)]
        layers += [nn.LayerNorm(config.widths[-1]), nn.Linear(config.widths[-1], embedding_dim)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hs ws"]:
        """(B, C, H, W) in [-1, 1] to (B, D, H / s, W / s)."""
        return self.layers(image.movedim(1, -1)).movedim(-1, 1)


class PatchDecoder(nn.Module):
    """Quantized latent (B, D, h, w) to image (B, C, h * s, w * s): the encoder mirrored."""

    def __init__(self, config: PatchConfig, image_channels: int, embedding_dim: int):
        super().__init__()
        widths = config.widths
        layers: list[nn.Module] = [PositionConv(embedding_dim, widths[-1], 3)]
        for level in reversed(range(len(widths))):
            layers += [PatchBlock(widths[level], config) for _ in range(config.blocks[level])]
            if level:
                enlarge = nn.Linear(widths[level], 4 * widths[level - 1])
                start_equal(enlarge, 4)
                layers += [enlarge, FromPatches(2)]
        last = PositionConv(widths[0], config.patch**2 * image_channels, 3)
        start_equal(last, config.patch**2)
        layers += [nn.LayerNorm(widths[0]), last, FromPatches(config.patch)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z_q: Float[Tensor, "b d hs ws"]) -> Float[Tensor, "b c h w"]:
        """(B, D, h, w) to (B, C, h * s, w * s), roughly in [-1, 1], not clamped."""
        return self.layers(z_q.movedim(1, -1)).movedim(-1, 1)


class PatchBlock(nn.Module):
    """x + linear(silu(linear(norm(depthwise(x))))), initially the identity."""

    def __init__(self, channels: int, config: PatchConfig):
        super().__init__()
        self.mix = PositionConv(channels, channels, config.kernel_size, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, config.expansion * channels)
        self.narrow = nn.Linear(config.expansion * channels, channels)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """(B, H, W, C) to the same shape."""
        return x + self.narrow(F.silu(self.widen(self.norm(self.mix(x)))))


class PositionConv(nn.Conv2d):
    """A convolution of features (B, H, W, C) that keeps H and W."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int, groups: int = 1):
        super().__init__(channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w o"]:
        """(B, H, W, C) to (B, H, W, O), without a copy: for the convolution, both are channels-last."""
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


class ToPatches(nn.Module):
    """Joins each square of `side` x `side` positions into one position with the channels of all."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b hs ws p"]:
        """(B, H, W, C) to (B, H / side, W / side, side² C): channel (side i + j) C + c is c of row i, column j."""
        batch, height, width, channels = x.shape
        side = self.side
        squares = x.reshape(batch, height // side, side, width // side, side, channels)
        return squares.transpose(2, 3).reshape(batch, height // side, width // side, side * side * channels)


class FromPatches(nn.Module):
    """Inverse of `ToPatches`."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Float[Tensor, "b hs ws p"]) -> Float[Tensor, "b h w c"]:
        """(B, h, w, side² C) to (B, h side, w side, C)."""
        batch, height, width, channels = x.shape
        side = self.side
        squares = x.reshape(batch, height, width, side, side, channels // side**2)
        return squares.transpose(2, 3).reshape(batch, height * side, width * side, channels // side**2)


@torch.no_grad()
def start_equal(layer: nn.Linear | nn.Conv2d, pixels: int) -> None:
    """Give all `pixels` of a square the same initial weights, so that training starts without a grid pattern."""
    one = layer.weight[: layer.weight.shape[0] // pixels]
    layer.weight.copy_(one.repeat(pixels, *(1 for _ in one.shape[1:])))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
