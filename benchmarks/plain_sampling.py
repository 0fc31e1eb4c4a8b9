"""The other side of `sampling.py`: VAR and LlamaGen sampled as people write it, in eager PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.priors import NextScaleTransformer, NextTokenTransformer


def pick(logits: Tensor, guidance: float) -> Tensor:
    """Tokens (B, n) from guided logits (2B, n, V)."""
    conditional, unconditional = logits.float().chunk(2)
    p = ((1 + guidance) * conditional - guidance * unconditional).softmax(-1)
    return torch.multinomial(p.flatten(0, 1), 1).view(p.shape[:2])


class CachedAttention(nn.Module):
    """Attention that joins new keys and values to the old ones."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.k = self.v = None

    def joined(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far."""
        self.k = k if self.k is None else torch.cat([self.k, k], dim=2)
        self.v = v if self.v is None else torch.cat([self.v, v], dim=2)
        return self.k, self.v

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values (B, H, n, d)."""
        return self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


# ---- VAR ------------------------------------------------------------------------------------------------------------


class UnitAttention(CachedAttention):
    """With queries and keys of unit length."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, bias=True)
        self.scale = nn.Parameter(torch.full((1, heads, 1, 1), 4.0).log())

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, W) to the same shape."""
        q, k, v = self.split(x)
        q = F.normalize(q, dim=-1).mul(self.scale.clamp_max(4.6).exp())
        k, v = self.joined(F.normalize(k, dim=-1), v)
        h = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return self.proj(h.transpose(1, 2).reshape(x.shape))


class VARBlock(nn.Module):
    """AdaLN, attention, AdaLN, MLP; as published, the class goes through `ada` in every call."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ada = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = UnitAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, n, W) to the same shape."""
        gain1, gain2, scale1, scale2, shift1, shift2 = self.ada(condition).unflatten(1, (6, 1, -1)).unbind(1)
        x = x + self.attention(self.norm(x).mul(scale1 + 1).add(shift1)).mul(gain1)
        return x + self.mlp(self.norm(x).mul(scale2 + 1).add(shift2)).mul(gain2)


class PlainVAR(nn.Module):
    """A next-scale transformer of the sizes of ours, with our step from scale to scale."""

    def __init__(self, prior: NextScaleTransformer):
        super().__init__()
        settings = prior.settings
        self.layout, self.quantizer, width = prior.layout, [prior.quantizer], settings.width
        self.classes = nn.Embedding(prior.num_classes + 1, width)
        self.words = nn.Linear(prior.quantizer.embedding_dim, width)
        self.places = nn.Parameter(torch.randn(1, self.layout.num_tokens, width) * 0.02)
        self.blocks = nn.ModuleList(VARBlock(width, settings.num_heads) for _ in range(settings.depth))
        self.head_ada = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.head = nn.Linear(width, self.layout.vocab_size)

    @torch.no_grad()
    def sample(self, labels: Tensor, guidance: float) -> Tensor:
        """Tokens (B, L)."""
        quantizer, grids = self.quantizer[0], self.layout.grids
        for block in self.blocks:
            block.attention.k = block.attention.v = None
        condition = self.classes(torch.cat([labels, torch.full_like(labels, self.classes.num_embeddings - 1)]))
        x = condition.unsqueeze(1) + self.places[:, :1]
        f_hat = torch.zeros(len(labels), quantizer.embedding_dim, *grids[-1])
        tokens = []
        for k in range(len(grids)):
            for block in self.blocks:
                x = block(x, condition)
            scale, shift = self.head_ada(condition).unsqueeze(1).chunk(2, dim=2)
            logits = self.head(self.norm(x).mul(scale + 1).add(shift))
            tokens.append(pick(logits, guidance * k / (len(grids) - 1)))
            if k + 1 < len(grids):
                codes = quantizer.scale_codes(tokens[k].view(-1, *grids[k]))
                f_hat, seen = quantizer.next_scale_input(k, f_hat, codes, grids)
                words = self.words(seen.flatten(2).transpose(1, 2).to(x.dtype))
                start, end = self.layout.spans[k + 1]
                x = (words + self.places[:, start:end]).repeat(2, 1, 1)
        return torch.cat(tokens, dim=1)


# ---- LlamaGen -------------------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """As Llama published it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, W) to the same shape."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x) * self.weight


class GPTBlock(CachedAttention):
    """RMSNorm, rotary attention, RMSNorm, gated MLP."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__(width, heads, bias=False)
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.w1, self.w3 = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, 1, W) to the same shape."""
        q, k, v = self.split(self.norm1(x))
        k, v = self.joined(turned(k, cos, sin), v)
        h = F.scaled_dot_product_attention(turned(q, cos, sin), k, v)
        x = x + self.proj(h.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions as LlamaGen published them."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).type_as(x)


class PlainGPT(nn.Module):
    """A next-token transformer of the sizes of ours."""

    def __init__(self, prior: NextTokenTransformer):
        super().__init__()
        settings, self.length = prior.settings, prior.layout.num_tokens
        width, vocabulary = settings.width, prior.layout.vocab_size
        self.classes, self.words = nn.Embedding(prior.num_classes + 1, width), nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            GPTBlock(width, settings.num_heads, settings.mlp_width) for _ in range(settings.depth)
        )
        self.norm, self.head = RMSNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.rotary = prior.rotary.float()

    @torch.no_grad()
    def sample(self, labels: Tensor, guidance: float) -> Tensor:
        """Tokens (B, L)."""
        for block in self.blocks:
            block.k = block.v = None
        x = self.classes(torch.cat([labels, torch.full_like(labels, self.classes.num_embeddings - 1)])).unsqueeze(1)
        tokens = []
        for i in range(self.length):
            cos, sin = self.rotary[i].unbind(-1)
            for block in self.blocks:
                x = block(x, cos, sin)
            tokens.append(pick(self.head(self.norm(x)), guidance))
            x = self.words(tokens[-1]).repeat(2, 1, 1)
        return torch.cat(tokens, dim=1)
