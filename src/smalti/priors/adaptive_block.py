"""The transformer block of VAR: the class conditions it through scales and shifts (AdaLN).

Source: adaptive layer norm, Peebles and Xie 2022, "DiT" (arXiv 2212.09748); with queries and keys of unit length and
learned temperatures, as VAR uses it (Tian et al. 2024, arXiv 2404.02905, appendix); stochastic depth, Huang
et al. 2016, "Deep networks with stochastic depth" (arXiv 1603.09382). The other block here is `llama_block.py`: without
condition, with rotary positions.

Legend: B images, n tokens read now, m tokens read so far, H heads, d dimensions per head, W = H · d width.
图例：B 张图像，n 个当前词元，m 个已读词元，H 个注意力头，每头 d 维，宽度 W = H · d。
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from smalti.ops.linear import linear
from smalti.priors.cache import LayerCache

EPS = 1e-6
MAX_TEMPERATURE = 100.0
MIN_LENGTH = 1e-12


class UnitAttention(nn.Module):
    """Multi-head attention; `l2_norm`: queries and keys of unit length, with a learned temperature per head."""

    def __init__(self, width: int, num_heads: int, *, l2_norm: bool):
        super().__init__()
        self.num_heads, self.l2_norm = num_heads, l2_norm
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        # Keys need no bias: it would add the same constant to all scores of a query
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)
        self.log_temperature = nn.Parameter(torch.full((num_heads, 1, 1), math.log(4.0))) if l2_norm else None

    def forward(
        self, x: Float[Tensor, "b n w"], mask: Bool[Tensor, "n n"] | None = None, cache: LayerCache | None = None
    ) -> Float[Tensor, "b n w"]:
        """(B, n, W) to the same shape; `mask` is True where a query (row) may attend, `cache` holds earlier tokens."""
        batch, tokens, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = linear(x, self.qkv.weight, bias).view(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scale = 0.25 / math.sqrt(q.shape[-1])
        if self.log_temperature is not None:
            temperature = self.log_temperature.clamp(max=math.log(MAX_TEMPERATURE)).exp()
            q, k, scale = (q * (temperature / length(q))).to(v.dtype), (k * (1 / length(k))).to(v.dtype), 1.0
        if cache is not None:
            k, v = cache.append(k, v)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return linear(h.transpose(1, 2).reshape(batch, tokens, width), self.out.weight, self.out.bias)


class GeluMLP(nn.Module):
    """down(gelu(up(x)))."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """(B, n, W) to the same shape."""
        return linear(linear(x, self.up.weight, self.up.bias, gelu=True), self.down.weight, self.down.bias)


class AdaptiveBlock(nn.Module):
    """x + γ1 · attention(norm(x) · (1 + σ1) + μ1), then the same with an MLP and γ2, σ2, μ2."""

    def __init__(
        self, width: int, num_heads: int, *, mlp_ratio: float, l2_norm: bool, shared: bool, drop_path: float = 0.0
    ):
        """
        Args:
            width: dimension of a token.
            num_heads: attention heads.
            mlp_ratio: hidden width of the MLP divided by `width`.
            l2_norm: see `UnitAttention`.
            shared: True: one linear layer of the whole model computes the six vectors, and the block adds its own
                constants. False: the block has its own linear layer.
            drop_path: probability of stochastic depth: training omits the attention or MLP branch of an image.
        """
        super().__init__()
        self.attention = UnitAttention(width, num_heads, l2_norm=l2_norm)
        self.mlp = GeluMLP(width, round(width * mlp_ratio))
        self.modulation = None if shared else nn.Linear(width, 6 * width)
        self.offsets = nn.Parameter(torch.randn(6, width) / width**0.5) if shared else None
        self.drop_path = drop_path

    def modulations(self, condition_BW: Float[Tensor, "b w"], shared_B6W: Tensor | None) -> Float[Tensor, "6 b 1 w"]:
        """γ1, γ2, σ1, σ2, μ1, μ2 for a condition; equal for all tokens, so sampling computes them once."""
        if self.modulation is not None:
            six_B6W = self.modulation(F.silu(condition_BW)).unflatten(1, (6, -1))
        else:
            assert self.offsets is not None
            assert shared_B6W is not None
            six_B6W = shared_B6W + self.offsets
        return six_B6W.transpose(0, 1).unsqueeze(2)

    @torch.no_grad()
    def write_less(self, factor: float) -> None:
        """VAR's initial weights: output layers of the branches are divided by `factor`, and γ starts near 0."""
        for layer in (self.attention.out, self.mlp.down):
            layer.weight.div_(factor)
        six = self.offsets if self.modulation is None else self.modulation.weight.unflatten(0, (6, -1))
        assert six is not None
        six[2:].mul_(0.5)
        six[:2].mul_(1e-5)

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        modulations: Float[Tensor, "6 b 1 w"],
        mask: Bool[Tensor, "n n"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n w"]:
        """(B, n, W) to the same shape."""
        gain1, gain2, scale1, scale2, shift1, shift2 = modulations
        x = torch.addcmul(x, self._some(gain1), self.attention(modulated(x, scale1, shift1), mask, cache))
        return torch.addcmul(x, self._some(gain2), self.mlp(modulated(x, scale2, shift2)))

    def _some(self, gain: Float[Tensor, "b 1 w"]) -> Float[Tensor, "b 1 w"]:
        """The gain with stochastic depth: in training 0 for some images, scaled up for the others to keep the mean."""
        if not self.training or self.drop_path == 0:
            return gain
        stays = torch.rand(gain.shape[0], 1, 1, device=gain.device) >= self.drop_path
        return gain * stays / (1 - self.drop_path)


def length(x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n 1"]:
    """Euclidean length of each vector, with a positive minimum."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=MIN_LENGTH)


def modulated(
    x: Float[Tensor, "b n w"], scale: Float[Tensor, "b 1 w"], shift: Float[Tensor, "b 1 w"]
) -> Float[Tensor, "b n w"]:
    """norm(x) · (1 + scale) + shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)
