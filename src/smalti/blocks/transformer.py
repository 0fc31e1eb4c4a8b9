"""The pre-norm transformer block of vision transformers: each token attends to all tokens.

Source: Dosovitskiy et al. 2020, ViT (arXiv 2010.11929), with the order of norms of CLIP's code, as in TiTok.

Legend: B images, N tokens, W width.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.checks import at_least, between

MOST_BLOCKS = 1000
"""Maximum number of blocks. A larger number is a typing error, and the model would take too long to build."""


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a vision transformer."""

    width: int = 512
    """Dimension of a token inside the transformer."""
    layers: int = 8
    """Number of blocks."""
    num_heads: int = 8
    """Attention heads; published models have 64 dimensions per head."""
    patch_size: int = 16
    """Side length of a patch in pixels."""
    mlp_ratio: float = 4.0
    """Hidden width of the two-layer network in a block, divided by `width`."""

    def __post_init__(self) -> None:
        check_sizes(self.width, self.num_heads, self.mlp_ratio, layers=self.layers)
        at_least(1, patch_size=self.patch_size)


def check_sizes(width: int, num_heads: int, mlp_ratio: float = 1.0, **blocks: int) -> None:
    """Refuse impossible sizes of a transformer. `blocks` is the number of blocks, under the caller's name for it."""
    at_least(1, width=width, num_heads=num_heads)
    between(1, MOST_BLOCKS, **blocks)
    if width % num_heads:
        raise ValueError(f"num_heads: got {num_heads}, expected a divisor of the width {width}")
    if not 0 < mlp_ratio < math.inf:
        raise ValueError(f"mlp_ratio: got {mlp_ratio}, expected a number above 0")


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """(B, N, W) to the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ViTConfig, dropout: float = 0.0):
        """
        Args:
            config: sizes.
            dropout: dropout rate of both residual branches.
        """
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, config.num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """(B, N, W) to the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))
