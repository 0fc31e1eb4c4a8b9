"""The transformer block of Llama: RMSNorm before each branch, rotary positions, gated MLP, no biases.

Source: Touvron et al. 2023, "LLaMA" (arXiv 2302.13971); RMSNorm, Zhang and Sennrich 2019 (arXiv 1910.07467); SwiGLU,
Shazeer 2020 (arXiv 2002.05202). `adaptive_block.py` is conditioned on the class instead.

Legend: B images, n tokens read now, W width.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.priors.cache import LayerCache
from smalti.priors.rotary import rotate


class RotaryAttention(nn.Module):
    """Causal multi-head attention with rotary positions; several heads of queries may share keys and values."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = num_heads, num_kv_heads, width // num_heads
        self.qkv = nn.Linear(width, (num_heads + 2 * num_kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "b n w"], rotary: Float[Tensor, "n half 2"], cache: LayerCache | None = None
    ) -> Float[Tensor, "b n w"]:
        """(B, n, W) to the same shape; with a cache, the n tokens follow those that it holds."""
        qkv = self.qkv(x).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(qk, rotary).split([self.heads, self.kv_heads], dim=1)
        if cache is not None:
            k, v = cache.append(k, v)
        # One new token attends to all earlier tokens; several tokens at once are a new sequence
        h = F.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1, enable_gqa=self.heads != self.kv_heads)
        return self.out(h.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """(B, n, W) to the same shape."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, hidden: int, dropout: float):
        """
        Args:
            width: dimension of a token.
            num_heads: heads of queries.
            num_kv_heads: heads of keys and values, a divisor of `num_heads`.
            hidden: hidden width of the MLP.
            dropout: fraction of each branch output that training sets to 0.
        """
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-5)
        self.attention = RotaryAttention(width, num_heads, num_kv_heads)
        self.norm2 = nn.RMSNorm(width, eps=1e-5)
        self.mlp = GatedMLP(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b n w"], rotary: Float[Tensor, "n half 2"], cache: LayerCache | None = None
    ) -> Float[Tensor, "b n w"]:
        """(B, n, W) to the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x), rotary, cache))
        return x + self.dropout(self.mlp(self.norm2(x)))
