"""Sampling tokens from logits: temperature, top-k, top-p and classifier-free guidance.

Source: top-k, Fan et al. 2018 (arXiv 1805.04833); top-p, Holtzman et al. 2019 (arXiv 1904.09751); classifier-free
guidance, Ho and Salimans 2022 (arXiv 2207.12598).

Legend: B images, n tokens sampled at once, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.checks import at_least, between

COLDEST = 1e-6
"""Lowest temperature; below it logits become infinite. `top_k=1` always takes the most likely token."""
STRONGEST = 1e6
"""Highest guidance; above it logits become infinite."""


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of sampling."""

    guidance: float = 1.5
    """Classifier-free guidance, as VAR's `cfg` (LlamaGen's `cfg_scale` minus one); 0 or no classes: none. A next-scale
    prior raises it from 0 at the first scale, as VAR does."""
    temperature: float = 1.0
    """Divides the logits: below 1 less varied images, above 1 more varied."""
    top_k: int = 0
    """Sample from the k most likely tokens only; 0: from all, 1: always the most likely."""
    top_p: float = 0.0
    """Sample from the smallest set of most likely tokens with total probability p; 0: from all."""

    def __post_init__(self) -> None:
        if not 0 <= self.guidance <= STRONGEST:
            raise ValueError(f"guidance: got {self.guidance}, expected 0 to {STRONGEST:g}")
        if not COLDEST <= self.temperature < math.inf:
            raise ValueError(f"temperature: got {self.temperature}, expected a number of at least {COLDEST:g}")
        at_least(0, top_k=self.top_k)
        between(0, 1, top_p=self.top_p)


def guided(logits: Float[Tensor, "twice n v"], scale: float) -> Float[Tensor, "b n v"]:
    """(1 + s) · conditional − s · unconditional, of logits (2B, n, V); the second half is unconditional."""
    conditional, unconditional = logits.chunk(2)
    return torch.lerp(unconditional, conditional, 1 + scale)


def draw(
    logits_BnV: Float[Tensor, "b n v"], config: SamplingConfig, generator: torch.Generator | None = None
) -> tuple[Int64[Tensor, "b n"], Float[Tensor, "b n"]]:
    """Sample one token per position.

    Args:
        logits_BnV: unnormalised log-probabilities.
        config: temperature, top-k and top-p; guidance is already applied.
        generator: source of randomness, on the device of the logits.

    Returns:
        Tokens (B, n) and their probabilities (B, n). If NaN or infinite logits leave no valid token, the probability is
        NaN and the token arbitrary. `check_drawn` refuses these once at the end, so that sampling never waits for the
        device.
    """
    logits_BnV = logits_BnV.float() / config.temperature
    if 0 < config.top_k < logits_BnV.shape[-1]:
        least = logits_BnV.topk(config.top_k, dim=-1).values[..., -1:]
        logits_BnV = logits_BnV.masked_fill(logits_BnV < least, -torch.inf)
    if 0 < config.top_p < 1:
        logits_BnV = _nucleus(logits_BnV, config.top_p)
    p_BnV = logits_BnV.softmax(dim=-1)
    tokens_Bn1 = p_BnV.argmax(-1, keepdim=True) if config.top_k == 1 else _inverted(p_BnV, generator)
    return tokens_Bn1.squeeze(-1), p_BnV.gather(-1, tokens_Bn1).squeeze(-1)


def check_drawn(p_Bn: Float[Tensor, "b n"]) -> None:
    """Refuse tokens (B, n) with probability NaN.

    Raises:
        ValueError: the logits were NaN or infinite.
    """
    if not p_Bn.isfinite().all():
        raise ValueError(
            "logits: got NaN or infinity from the prior, expected finite numbers; its weights are damaged, or its "
            "precision, guidance or temperature is unsuitable"
        )


def _inverted(p_BnV: Tensor, generator: torch.Generator | None) -> Tensor:
    """Tokens (B, n, 1): the first at which the sum of probabilities exceeds a random number.

    One random number per token; `torch.multinomial` draws one for each of the V codes. In float64, which represents the
    probabilities of rare codes, except on Apple's GPUs, which have no float64.
    """
    wide = torch.float32 if p_BnV.device.type == "mps" else torch.float64
    sums_BnV = p_BnV.cumsum(dim=-1, dtype=wide)
    u_Bn1 = torch.rand(*p_BnV.shape[:2], 1, dtype=wide, device=p_BnV.device, generator=generator)
    tokens_Bn1 = torch.searchsorted(sums_BnV, u_Bn1 * sums_BnV[..., -1:], right=True)
    return tokens_Bn1.clamp(max=p_BnV.shape[-1] - 1)  # with NaN no sum exceeds it


def _nucleus(logits_BnV: Tensor, top_p: float) -> Tensor:
    """Logits with −∞ where more likely tokens already have total probability `top_p`; the most likely token is kept."""
    ordered, order = logits_BnV.sort(dim=-1, descending=True)
    p = ordered.softmax(dim=-1)
    dropped = p.cumsum(dim=-1) - p >= top_p
    return logits_BnV.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
