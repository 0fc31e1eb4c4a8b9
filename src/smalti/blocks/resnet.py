"""The residual block and the attention block of all VQGANs.

Source: Esser et al. 2021, "Taming Transformers" (arXiv 2012.09841), after DDPM (Ho et al. 2020, arXiv 2006.11239). The
blocks of later families (VAR, LlamaGen, IBQ, MaskGIT, Open-MAGVIT2, MoVQ) differ only in `BlockStyle`. The block of
`convolutional.py` is lighter, for the small model that trains from scratch in minutes.

Legend: B images, C channels, H x W features.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.blocks.norms import GroupNorm, SpatialNorm
from smalti.checks import at_least, one_of
from smalti.formats.plain import added_later

Shortcut = Literal["1x1", "3x3", "after"]
NormKind = Literal["group", "spatial"]


@dataclass(frozen=True)
class BlockStyle:
    """The differences between the blocks of the families."""

    bias: bool = True
    """Whether the 3x3 convolutions have a bias."""
    shortcut: Shortcut = "1x1"
    """Shortcut of blocks that change the width: a "1x1" or "3x3" convolution of the block's input; or "after", a 1x1
    convolution of the block's result, as in the PyTorch port of MaskGIT."""
    norm: NormKind = "group"
    """"group", or "spatial" for a decoder with norms that depend on the latent (MoVQ)."""
    norm_groups: int = 32
    """Groups of each group normalisation."""
    num_heads: int = 1
    """Heads of each attention block."""
    exact_norms: bool = added_later(False)
    """Whether norms are exact even for large means, see `ops/group_norm.py`."""

    def __post_init__(self) -> None:
        one_of(get_args(Shortcut), shortcut=self.shortcut)
        one_of(get_args(NormKind), norm=self.norm)
        at_least(1, norm_groups=self.norm_groups, num_heads=self.num_heads)

    def make_norm(self, channels: int, latent_channels: int | None) -> nn.Module:
        """A norm for `channels` channels; `latent_channels` are those of z_q, None in an encoder."""
        if self.norm == "spatial" and latent_channels is not None:
            return SpatialNorm(channels, latent_channels, self.norm_groups, exact=self.exact_norms)
        return GroupNorm(channels, self.norm_groups, exact=self.exact_norms)


class ResnetBlock(nn.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x)))))), both convolutions 3x3."""

    def __init__(self, in_channels: int, out_channels: int, style: BlockStyle, latent_channels: int | None = None):
        """
        Args:
            in_channels: channels of the input.
            out_channels: channels of the output; if they differ from the input's, the shortcut has a convolution.
            style: variant of the block.
            latent_channels: channels of z_q, for norms that depend on it; None in an encoder.
        """
        super().__init__()
        self.norm1 = style.make_norm(in_channels, latent_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=style.bias)
        self.norm2 = style.make_norm(out_channels, latent_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=style.bias)
        self.after = style.shortcut == "after"
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            size = 3 if style.shortcut == "3x3" else 1
            source = out_channels if self.after else in_channels
            self.shortcut = nn.Conv2d(source, out_channels, kernel_size=size, padding=size // 2, bias=style.bias)

    def forward(self, x: Float[Tensor, "b c h w"], z_q: Tensor | None = None) -> Float[Tensor, "b d h w"]:
        """(B, C, H, W) to (B, C', H, W); `z_q` (B, D, h, w) is for norms that depend on it."""
        h = self.conv1(F.silu(self.norm1(x, z_q), inplace=True))
        h = self.conv2(F.silu(self.norm2(h, z_q), inplace=True))
        # In place, into the tensor that nothing else uses: to allocate large features takes as long as to add them
        if self.shortcut is None:
            return h.add_(x)
        return self.shortcut(h if self.after else x).add_(h)


class AttentionBlock(nn.Module):
    """x + out(attention(norm(x))): each position attends to all positions."""

    def __init__(self, channels: int, style: BlockStyle, latent_channels: int | None = None):
        super().__init__()
        if channels % style.num_heads:
            raise ValueError(f"num_heads: got {style.num_heads}, expected a divisor of {channels} channels")
        self.num_heads = style.num_heads
        self.norm = style.make_norm(channels, latent_channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Float[Tensor, "b c h w"], z_q: Tensor | None = None) -> Float[Tensor, "b c h w"]:
        """(B, C, H, W) to the same shape."""
        batch, channels, height, width = x.shape
        heads = (batch, height * width, 3, self.num_heads, channels // self.num_heads)
        # Channels-last layout: q, k and v are views of one tensor (3, B, heads, H * W, C / heads)
        q, k, v = self.qkv(self.norm(x, z_q)).permute(0, 2, 3, 1).reshape(heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return self.out(h).add_(x)
