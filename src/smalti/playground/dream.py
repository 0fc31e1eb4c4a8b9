"""Panel 7, Dream: what a prior expects of the tokens of a picture, and tokens drawn anew by it.

The surprisal of a token is -log2 of the probability that the prior gives it, see `Prior.surprisal`. Tokens are drawn
anew inside a painted region, or wherever the prior predicted them well; all others stay.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from smalti.data import TransformConfig
from smalti.priors import MaskedTransformer, NextScaleTransformer, Prior, SamplingConfig, TokenLayout
from smalti.tokenizers import TiTok, Tokenizer, Tokens

REDRAWN_SHARE = 0.5
"""A token is part of a painted region if at least this share of its area is painted. Tokens of coarse scales cover
much of the picture: a small region leaves them alone."""


@dataclass(frozen=True, eq=False)
class Surprise:
    """The surprisal of all tokens of a picture."""

    bits_L: Float[Tensor, " l"]
    """Bits of each token, scales coarse to fine, each in raster order."""
    maps: tuple[Float[Tensor, "_h _w"], ...]
    """Bits of each position, one map per scale; several codes of a position are added."""

    @property
    def total(self) -> float:
        """Bits of the whole picture."""
        return self.bits_L.double().sum().item()


def fitted(picture: UInt8[Tensor, "c h w"], layout: TokenLayout) -> UInt8[Tensor, "c height width"]:
    """The centre of the picture at the size that the prior was trained on."""
    return TransformConfig(size=layout.image_size).apply(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))


def surprise(prior: Prior, tokens: Tokens, label: int | None = None) -> Surprise:
    """Bits of each token of one picture.

    Args:
        prior: the prior.
        tokens: tokens of one picture, in the layout of the prior.
        label: class of the picture; None: no class.

    Raises:
        ValueError: tokens of another layout, or no such class.
    """
    _check_layout(prior, tokens)
    bits_1L = prior.surprisal(tokens.flatten(), _labels(prior, label)).float()
    maps = []
    for (start, end), grid in zip(prior.layout.spans, prior.layout.grids, strict=True):
        maps.append(bits_1L[0, start:end].reshape(grid[0], grid[1], -1).sum(dim=2))
    return Surprise(bits_1L[0], tuple(maps))


def painted(layout: TokenLayout, region: Bool[Tensor, "h w"]) -> Bool[Tensor, " l"]:
    """The tokens (L,) of a region, which is painted on a grid of any size, mostly that of the finest scale."""
    parts = []
    for grid in layout.grids:
        down, across = (_shares(coarse, fine) for coarse, fine in zip(grid[:2], region.shape, strict=True))
        hit = down @ region.double() @ across.T >= REDRAWN_SHARE - 1e-9
        parts.append(hit.reshape(*hit.shape, *[1] * (len(grid) - 2)).expand(grid).reshape(-1))
    return torch.cat(parts)


def predictable(surprise: Surprise, bits: float) -> Bool[Tensor, " l"]:
    """The tokens (L,) of less than this many bits."""
    return surprise.bits_L < bits


def redraw(
    prior: Prior,
    tokens: Tokens,
    chosen_L: Bool[Tensor, " l"],
    *,
    label: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> Tokens:
    """The same tokens, the chosen ones drawn anew.

    Args:
        prior: the prior.
        tokens: tokens of one picture, in the layout of the prior.
        chosen_L: True for each token to draw.
        label: class of the picture; None: no class, and so no guidance.
        temperature: of sampling.
        seed: of sampling; another seed gives other tokens.

    Raises:
        ValueError: tokens of another layout, no such class, or no token chosen.
    """
    _check_layout(prior, tokens)
    if not chosen_L.any():
        raise ValueError("region: got no token, expected at least one; paint a larger region or raise the threshold")
    default = SamplingConfig()
    config = replace(default, temperature=temperature, guidance=default.guidance if label is not None else 0.0)
    sequence_1L = prior.sample(
        _labels(prior, label),
        config,
        given_BL=tokens.flatten(),
        keep_BL=~chosen_L[None],
        generator=torch.Generator().manual_seed(seed),
    )
    drawn = Tokens.unflatten(sequence_1L, tokens.grids, tokens.image_size, tokens.vocab_size)
    return replace(tokens, indices=drawn.indices)


def meaning(prior: Prior) -> str:
    """What the bits of this kind of prior are conditioned on, as a key of the page's words."""
    if isinstance(prior, NextScaleTransformer):
        return "dream_next_scale"
    return "dream_masked" if isinstance(prior, MaskedTransformer) else "dream_next_token"


def no_region(tokenizer: Tokenizer) -> bool:
    """Whether no region can be painted: a token of TiTok belongs to no place of the picture."""
    return isinstance(tokenizer, TiTok)


def _shares(coarse: int, fine: int) -> Float[Tensor, "coarse fine"]:
    """The share of each of `coarse` equal intervals that each of `fine` equal intervals covers."""
    starts, ends = torch.arange(coarse)[:, None] * fine, (torch.arange(coarse)[:, None] + 1) * fine
    lows, highs = torch.arange(fine) * coarse, (torch.arange(fine) + 1) * coarse
    overlap = (torch.minimum(ends, highs) - torch.maximum(starts, lows)).clamp(min=0)
    return overlap.double() / fine


def _labels(prior: Prior, label: int | None) -> Int64[Tensor, " 1"]:
    return torch.tensor([prior.num_classes if label is None else label])


def _check_layout(prior: Prior, tokens: Tokens) -> None:
    """Refuse tokens of another layout."""
    own = TokenLayout(tokens.vocab_size, tokens.grids, tokens.image_size, tokens.fingerprint)
    prior.layout.require(own, "tokens")
