"""Priors small enough to test with, and how to read one with all tokens at once."""

import torch
from torch import Tensor

from smalti.priors import (
    MaskedConfig,
    MaskedTransformer,
    NextScaleConfig,
    NextScaleTransformer,
    NextTokenConfig,
    NextTokenTransformer,
    Prior,
    SamplingConfig,
    TokenLayout,
)
from smalti.quantizers import MultiScaleQuantizer, ResidualQuantizer, VectorQuantizer

V = 11
PYRAMID = TokenLayout.of(V, [(1, 1), (2, 1), (3, 2)], (24, 16))
FLAT = TokenLayout.of(V, [(3, 4)], (12, 16))
DEEP_PYRAMID = TokenLayout.of(V, [(1, 1, 2), (2, 1, 2), (3, 2, 2)], (24, 16))
DEEP = TokenLayout.of(V, [(2, 3, 2)], (8, 12))
GREEDY = SamplingConfig(guidance=0.0, top_k=1)


def next_scale(*, num_classes: int = 3, **changes: object) -> NextScaleTransformer:
    config = NextScaleConfig(**{"depth": 2, "width": 16, "num_heads": 2} | changes)  # type: ignore[arg-type]
    return NextScaleTransformer(PYRAMID, num_classes, MultiScaleQuantizer(V, 4, (1, 2, 3), num_phi=2), config)


def next_scale_deep() -> NextScaleTransformer:
    """Two residual levels at each position of each scale."""
    levels = ResidualQuantizer([VectorQuantizer(V, 4) for _ in range(2)])
    quantizer = MultiScaleQuantizer(V, 4, (1, 2, 3), num_phi=2, quantizer=levels)
    return NextScaleTransformer(DEEP_PYRAMID, 3, quantizer, NextScaleConfig(depth=2, width=16, num_heads=2))


def next_token(layout: TokenLayout = FLAT, *, num_classes: int = 3, **changes: object) -> NextTokenTransformer:
    config = NextTokenConfig(**{"depth": 2, "width": 16, "num_heads": 2} | changes)  # type: ignore[arg-type]
    return NextTokenTransformer(layout, num_classes, config)


def masked(layout: TokenLayout = FLAT, *, num_classes: int = 3, **changes: object) -> MaskedTransformer:
    config = MaskedConfig(**{"depth": 2, "width": 16, "num_heads": 2, "sampling_steps": 5} | changes)  # type: ignore[arg-type]
    return MaskedTransformer(layout, num_classes, config)


def awake(prior: Prior) -> Prior:
    """With weights of some size everywhere: fresh heads and gains are zero or nearly so."""
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            if not name.startswith("quantizer."):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return prior.eval()


def sequences(prior: Prior, batch: int = 3) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(V, (batch, prior.layout.num_tokens), generator=torch.Generator().manual_seed(1))
    return tokens, torch.arange(batch) % 4


def logits(prior: Prior, tokens: Tensor, labels: Tensor) -> Tensor:
    if isinstance(prior, NextScaleTransformer):
        return prior(prior.quantizer.var_input(prior.layout.split(tokens)), labels)
    return prior(tokens, labels)
