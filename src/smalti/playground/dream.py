"""Panel 7, Dream: what a prior expects of the tokens of a picture, and tokens drawn anew by it.

The surprisal of a token is -log2 of the probability that the prior gives it, see `Prior.surprisal`. Tokens are drawn
anew inside a painted region, or wherever the prior predicted them well; all others stay.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from smalti.data import TransformConfig
from smalti.playground.layers import Layer
from smalti.playground.look import state
from smalti.playground.paint import changed
from smalti.playground.pictures import data_url, heat_map
from smalti.playground.words import RefusalError
from smalti.playground.workspace import Workspace
from smalti.priors import MaskedTransformer, NextScaleTransformer, Prior, SamplingConfig, TokenLayout
from smalti.tokenizers import Tokens

TOP_BITS = 16.0
"""Bits that have the brightest colour of the map: the cost of a token of 65536 equally likely codes."""
REDRAWN_SHARE = 0.5
"""A token is part of a painted region if at least this share of its area is painted. Tokens of coarse scales cover
much of the picture: a small region leaves them alone."""


# ---- the panel ------------------------------------------------------------------------------------------------------


def look(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the prior expects: bits of all tokens and a map for each layer, for the class `label`.

    Without a prior, or for a picture of another size than the prior's, only what is missing.
    """
    prior = workspace.opened.prior
    if prior is None:
        return {"kind": None}
    layout, tokens = prior.layout, workspace.step.tokens
    known = {
        "kind": kind_of(prior),
        "classes": [name or str(n) for n, name in enumerate(_class_names(prior))],
        "size": [layout.image_size[1], layout.image_size[0]],
        "fits": (tokens.grids, tokens.image_size) == (layout.grids, layout.image_size),
    }
    if not known["fits"]:
        return known
    bits_L, layers = _bits(workspace, prior, _label(arguments)), workspace.layers
    return {
        **known,
        "bits": [round(bits, 2) for bits in bits_L.tolist()],
        "total": bits_L.double().sum().item(),
        "packed": len(bits_L) * math.log2(tokens.vocab_size),
        "maps": [data_url(heat_map(_over_picture(map_of(bits_L, layer), workspace), TOP_BITS)) for layer in layers],
        "top": TOP_BITS,
        "rows": layers[-1].rows,
        "columns": layers[-1].columns,
        "paintable": layers[-1].spatial,
    }


def fit(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Cut the picture to the size of the prior and encode it again."""
    prior, step = _prior(workspace), workspace.step
    picture = step.image if workspace.pixels is None else workspace.pixels
    pixels = fitted(picture[0].cpu(), prior.layout)[None].to(workspace.opened.device)
    workspace.start(workspace.opened.tokenizer.encode(pixels), pixels)
    return state(workspace)


def draw(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Draw tokens anew: those of the painted cells `cells` of the finest layer, or, if `cells` is None, all of less
    than `threshold` bits; with class `label`, `temperature` and `seed`."""
    prior, tokens, label = _prior(workspace), workspace.step.tokens, _label(arguments)
    if arguments.get("cells") is None:
        chosen_L = _bits(workspace, prior, label) < float(arguments["threshold"])
    else:
        finest = workspace.layers[-1]
        if not finest.spatial:
            raise RefusalError("refused_placeless")
        region = torch.zeros(finest.count, dtype=torch.bool)
        for cell in arguments["cells"]:
            finest.position(int(cell))  # refuses a cell outside the grid
            region[int(cell)] = True
        chosen_L = painted(prior.layout, region.reshape(finest.rows, finest.columns))
    drawn = redraw(
        prior,
        tokens,
        chosen_L,
        label=label,
        temperature=float(arguments["temperature"]),
        seed=int(arguments["seed"]),
    )
    workspace.replace(drawn)
    return {**changed(workspace), "drawn": int(chosen_L.sum())}


def kind_of(prior: Prior) -> str:
    """The kind of a prior; the page says what its bits are conditioned on."""
    if isinstance(prior, NextScaleTransformer):
        return "next-scale"
    return "masked" if isinstance(prior, MaskedTransformer) else "next-token"


def _bits(workspace: Workspace, prior: Prior, label: int | None) -> Float[Tensor, " l"]:
    """Bits of the current tokens, computed once."""
    return workspace.cached(("bits", label), lambda: surprisal(prior, workspace.step.tokens, label))


def _label(arguments: dict[str, Any]) -> int | None:
    return None if arguments["label"] is None else int(arguments["label"])


def _over_picture(bits: Float[Tensor, "rows columns"], workspace: Workspace) -> Float[Tensor, "h w"]:
    """A map at the size of the picture: the value of the cell at each pixel. Cells may reach beyond the picture."""
    height, width = workspace.step.tokens.image_size
    covered = (height, width)
    if workspace.layers[0].spatial:
        tokenizer = workspace.opened.tokenizer
        rows, columns = tokenizer.latent_grid((height, width))
        covered = (rows * tokenizer.stride, columns * tokenizer.stride)
    y, x = (
        torch.arange(side) * count // whole
        for side, count, whole in zip((height, width), bits.shape, covered, strict=True)
    )
    return bits[y][:, x]


def _prior(workspace: Workspace) -> Prior:
    """The prior of the current tokenizer.

    Raises:
        ValueError: there is none.
    """
    if workspace.opened.prior is None:
        raise RefusalError("refused_prior", model=workspace.opened.name)
    return workspace.opened.prior


def _class_names(prior: Prior) -> list[str]:
    """A name for each class of the prior; "" for classes without names."""
    return [*prior.class_names, *[""] * (prior.num_classes - len(prior.class_names))]


# ---- bits and drawing -----------------------------------------------------------------------------------------------


def fitted(picture: UInt8[Tensor, "c h w"], layout: TokenLayout) -> UInt8[Tensor, "c height width"]:
    """The centre of the picture at the size that the prior was trained on."""
    return TransformConfig(size=layout.image_size).apply(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))


def surprisal(prior: Prior, tokens: Tokens, label: int | None = None) -> Float[Tensor, " l"]:
    """Bits (L,) of each token of one picture.

    Args:
        prior: the prior.
        tokens: tokens of one picture, in the layout of the prior.
        label: class of the picture; None: no class.

    Raises:
        ValueError: tokens of another layout, or no such class.
    """
    _check_layout(prior, tokens)
    sequence_1L = tokens.flatten()
    return prior.surprisal(sequence_1L, _labels(prior, label, sequence_1L.device))[0].float().cpu()


def map_of(bits_L: Float[Tensor, " l"], layer: Layer) -> Float[Tensor, "rows columns"]:
    """The bits of the tokens of one layer on its grid; 0 where the last row has no token."""
    bits = bits_L.new_zeros(layer.rows * layer.columns)
    bits[: layer.count] = bits_L[[layer.position(cell) for cell in range(layer.count)]]
    return bits.reshape(layer.rows, layer.columns)


def painted(layout: TokenLayout, region: Bool[Tensor, "h w"]) -> Bool[Tensor, " l"]:
    """The tokens (L,) of a region, which is painted on a grid of any size, mostly that of the finest scale."""
    parts = []
    for grid in layout.grids:
        down, across = (_shares(coarse, fine) for coarse, fine in zip(grid[:2], region.shape, strict=True))
        hit = down @ region.double() @ across.T >= REDRAWN_SHARE - 1e-9
        parts.append(hit.reshape(*hit.shape, *[1] * (len(grid) - 2)).expand(grid).reshape(-1))
    return torch.cat(parts)


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
        raise RefusalError("refused_nothing")
    default = SamplingConfig()
    config = replace(default, temperature=temperature, guidance=default.guidance if label is not None else 0.0)
    given_1L = tokens.flatten()
    sequence_1L = prior.sample(
        _labels(prior, label, given_1L.device),
        config,
        given_BL=given_1L,
        keep_BL=~chosen_L[None].to(given_1L.device),
        generator=torch.Generator(given_1L.device).manual_seed(seed),
    )
    drawn = Tokens.unflatten(sequence_1L, tokens.grids, tokens.image_size, tokens.vocab_size)
    return replace(tokens, indices=drawn.indices)


def _shares(coarse: int, fine: int) -> Float[Tensor, "coarse fine"]:
    """The share of each of `coarse` equal intervals that each of `fine` equal intervals covers."""
    starts, ends = torch.arange(coarse)[:, None] * fine, (torch.arange(coarse)[:, None] + 1) * fine
    lows, highs = torch.arange(fine) * coarse, (torch.arange(fine) + 1) * coarse
    overlap = (torch.minimum(ends, highs) - torch.maximum(starts, lows)).clamp(min=0)
    return overlap.double() / fine


def _labels(prior: Prior, label: int | None, device: torch.device) -> Int64[Tensor, " 1"]:
    return torch.tensor([prior.num_classes if label is None else label], device=device)


def _check_layout(prior: Prior, tokens: Tokens) -> None:
    """Refuse tokens of another layout."""
    own = TokenLayout(tokens.vocab_size, tokens.grids, tokens.image_size, tokens.fingerprint)
    prior.layout.require(own, "tokens")
