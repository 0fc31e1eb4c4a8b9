"""The temporal part of Emu3's video tokenizer, applied to single images.

Source: Wang et al. 2024, "Emu3: Next-Token Prediction is All You Need" (arXiv 2409.18869). Convolutions over time are
causal: a frame depends on itself and on earlier frames, with zeros before the first. An image is encoded as
2 ** num_halvings equal frames, which become one latent frame; decoding computes only the first frame.

Legend: B images, C latent channels, T frames, h x w latent, s the stride of the pyramid.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.blocks.pyramid import PyramidConfig, PyramidDecoder, PyramidEncoder


class CausalConv3d(nn.Module):
    """A 3-D convolution, zero-padded by two frames before the first frame and evenly around each frame."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int = 1):
        """
        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            kernel: frames, height and width; height and width odd.
            stride: stride over time.
        """
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride=(stride, 1, 1))
        self.padding = (kernel[2] // 2, kernel[2] // 2, kernel[1] // 2, kernel[1] // 2, 2, 0)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d s h w"]:
        """(B, C, T, h, w) to (B, C', T', h, w)."""
        return self.conv(F.pad(x, self.padding))


class TemporalBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))) with causal 3x3x3 convolutions and batch norms."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.BatchNorm3d(channels)
        self.conv1 = CausalConv3d(channels, channels, (3, 3, 3))
        self.norm2 = nn.BatchNorm3d(channels)
        self.conv2 = CausalConv3d(channels, channels, (3, 3, 3))

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """(B, C, T, h, w) to the same shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class ImageToFrameEncoder(nn.Module):
    """Image (B, C, H, W) to the latent frame (B, D, H / s, W / s) of a video with equal frames."""

    def __init__(self, config: PyramidConfig, image_channels: int, embedding_dim: int, num_halvings: int, depth: int):
        """
        Args:
            config: sizes of the pyramid, with projection 0.
            image_channels: channels of the images.
            embedding_dim: channels of the latent.
            num_halvings: number of layers that halve the time axis; 2 ** num_halvings frames become one.
            depth: number of temporal residual blocks.
        """
        super().__init__()
        channels = config.latent_channels
        self.pyramid = PyramidEncoder(config, image_channels, channels)
        self.halvings = nn.ModuleList(
            CausalConv3d(channels, channels, (4, 3, 3), stride=2) for _ in range(num_halvings)
        )
        self.blocks = nn.ModuleList(TemporalBlock(channels) for _ in range(depth))
        self.projection = CausalConv3d(channels, embedding_dim, (3, 1, 1))

    def forward(self, image: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        """(B, C, H, W) to (B, D, H / s, W / s)."""
        # All frames are equal: encode one and repeat the result
        x = self.pyramid(image).contiguous().unsqueeze(2).expand(-1, -1, 2 ** len(self.halvings), -1, -1)
        for halving in self.halvings:
            x = F.silu(halving(x))
        for block in self.blocks:
            x = block(x)
        return self.projection(x).squeeze(2)


class FrameToImageDecoder(nn.Module):
    """Quantized latent frame (B, D, h, w) to the first decoded frame (B, C, h * s, w * s), not clamped."""

    def __init__(self, config: PyramidConfig, image_channels: int, embedding_dim: int, num_doublings: int, depth: int):
        """Arguments as in `ImageToFrameEncoder`. The latent for the norms also passes through the temporal part."""
        super().__init__()
        channels = config.latent_channels
        if channels != embedding_dim:
            raise ValueError(f"latent_channels: got {channels}, expected the embedding_dim {embedding_dim}")
        self.projection = CausalConv3d(embedding_dim, channels, (3, 1, 1))
        self.blocks = nn.ModuleList(TemporalBlock(channels) for _ in range(depth))
        self.doublings = nn.ModuleList(CausalConv3d(channels, channels, (3, 3, 3)) for _ in range(num_doublings))
        self.pyramid = PyramidDecoder(config, image_channels, channels)

    def forward(self, z_q: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        """(B, D, h, w) to (B, C, h * s, w * s)."""
        z_q_BD1hw = z_q.contiguous().unsqueeze(2)
        x = torch.cat([self.projection(z_q_BD1hw), z_q_BD1hw])
        for block in self.blocks:
            x = block(x)
        # Doubling repeats frames; the first frame depends only on itself, so the others are not computed
        for doubling in self.doublings:
            x = F.silu(doubling(x))
        h, z_q = x.squeeze(2).contiguous(memory_format=torch.channels_last).chunk(2)
        return self.pyramid.from_features(h, z_q)
