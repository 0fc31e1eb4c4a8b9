"""φ of the multi-scale quantizer: the convolution that repairs what enlarging a token map blurs.

Source: Tian et al. 2024 (VAR, arXiv 2404.02905), section 3.2, and its published code.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Phi(nn.Module):
    """φ: a 3×3 convolution mixed with the identity, (1 - ratio) · h + ratio · conv(h)."""

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, dtype=torch.float32)

    def forward(self, h_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """(B, C, H, W) to the same shape."""
        return h_BCHW * (1 - self.ratio) + self.conv(h_BCHW) * self.ratio


def shared_phi(k: int, num_scales: int, num_phi: int) -> int:
    """Which φ scale `k` uses: the one whose tick lies nearest to k / (num_scales - 1) in [0, 1].

    The ticks are those of VAR's published code, which its checkpoints depend on, to the last bit: some scales lie
    halfway between two.

    >>> [shared_phi(k, 10, 4) for k in range(10)]
    [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    """
    margin = 1 / 3 / num_phi if num_phi == 4 else 1 / 2 / num_phi
    step = (1 - margin - margin) / max(1, num_phi - 1)
    ticks = [margin + i * step for i in range(num_phi - 1)] + [1 - margin if num_phi > 1 else margin]
    place = k / max(1, num_scales - 1)
    return min(range(num_phi), key=lambda i: abs(ticks[i] - place))
