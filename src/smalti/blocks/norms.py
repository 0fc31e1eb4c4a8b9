"""Normalisation layers of image networks; in a decoder, some depend on the quantized latent.

All are called as `norm(x, z_q)`, so blocks work with each kind:

    GroupNorm           ignores z_q (Wu & He 2018, arXiv 1803.08494)
    SpatialNorm         scale and shift per position, from the latent at this position (MoVQ, Zheng et al. 2022, arXiv
                        2209.09002)
    AdaptiveGroupNorm   scale and shift per image, from the standard deviation and mean of its latent (Open-MAGVIT2, Luo
                        et al. 2024, arXiv 2409.04410)

Legend: B images, C channels, D latent channels, H x W features, h x w latent.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.ops import group_norm

EPS = 1e-6
"""The term that all published VQGANs add to the variance."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation with `eps` added to the variance. `z_q` is ignored; for `exact` see `ops.group_norm`."""

    def __init__(self, channels: int, groups: int = 32, affine: bool = True, eps: float = EPS, *, exact: bool = False):
        if groups < 1 or channels % groups:
            raise ValueError(f"norm_groups: got {groups}, expected a divisor of {channels} channels")
        super().__init__(groups, channels, eps=eps, affine=affine)
        self.exact = exact

    def forward(self, x: Float[Tensor, "b c h w"], z_q: Tensor | None = None) -> Float[Tensor, "b c h w"]:
        """(B, C, H, W) to the same shape."""
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps, self.exact)


class SpatialNorm(nn.Module):
    """GroupNorm(x) * scale(z_q) + shift(z_q); the latent is enlarged to the size of x by repetition."""

    def __init__(self, channels: int, latent_channels: int, groups: int = 32, *, exact: bool = False):
        super().__init__()
        self.norm = GroupNorm(channels, groups, exact=exact)
        self.scale = nn.Conv2d(latent_channels, channels, kernel_size=1)
        self.shift = nn.Conv2d(latent_channels, channels, kernel_size=1)

    def forward(self, x: Float[Tensor, "b c H W"], z_q: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        """(B, C, H, W) and latent (B, D, h, w) to (B, C, H, W)."""
        # A 1x1 convolution and repetition commute: convolve at the latent's size, which is cheaper.
        size = x.shape[2:]
        scale = F.interpolate(self.scale(z_q), size=size, mode="nearest")
        shift = F.interpolate(self.shift(z_q), size=size, mode="nearest")
        return shift.addcmul(self.norm(x), scale)


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm(x) * scale(std of z_q) + shift(mean of z_q), one scale and shift per image and channel.

    `depth_to_space` before it returns features that are not channels-last, which is intended: their means are many
    times larger than their standard deviations. For channels-last features, torch's CPU kernel computes the variance
    as mean of squares minus square of the mean, which would lose three digits here.
    """

    def __init__(self, channels: int, latent_channels: int, groups: int = 32):
        super().__init__()
        self.norm = GroupNorm(channels, groups, affine=False)
        self.scale = nn.Linear(latent_channels, channels)
        self.shift = nn.Linear(latent_channels, channels)

    def forward(self, x: Float[Tensor, "b c H W"], z_q: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        """(B, C, H, W) and latent (B, D, h, w) to (B, C, H, W)."""
        z_BDn = z_q.flatten(2)
        # The sample variance; for a latent of one cell, 0.
        variance = z_BDn.var(dim=2, correction=1 if z_BDn.shape[2] > 1 else 0)
        scale = self.scale((variance + EPS).sqrt())
        shift = self.shift(z_BDn.mean(dim=2))
        return torch.addcmul(shift[:, :, None, None], self.norm(x), scale[:, :, None, None])
