"""Panel 5, Codes: the codebook as a wall of pictures, sorted by use, in pages of a few codes each."""

from typing import Any

import torch
from torch import Tensor

from smalti.ops import count_codes
from smalti.playground.layers import Layer
from smalti.playground.opened import TILE
from smalti.playground.pictures import data_url
from smalti.playground.words import RefusalError
from smalti.playground.workspace import Workspace

PAGE = 96
"""Codes of one page of the wall."""
MOST_LISTED = 2**20
"""With more codes the wall shows only those in the picture."""


def wall(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """The codes of the layer `layer` from place `start` on, at most `PAGE`, most used first.

    Sorted by use in training, or in this picture if the model kept no count of its training.
    """
    layer, start = workspace.layer(int(arguments["layer"])), max(0, int(arguments["start"]))
    order = workspace.cached(("order", layer.codebook), lambda: _order(workspace, layer))
    codes = order[start : start + PAGE].tolist()
    used = workspace.opened.usage(layer.codebook)
    return {
        **_pictures(workspace, [(layer, code) for code in codes]),
        "codes": codes,
        "layer": layer.number,
        "start": start,
        "total": len(order),
        "dead": None if used is None else int((used == 0).sum()),
    }


def pictures(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """The pictures of the codes `wanted`, pairs (number of the layer, code), with their use in training."""
    wanted = [(workspace.layer(int(number)), int(code)) for number, code in arguments["wanted"][:PAGE]]
    last = workspace.opened.tokenizer.vocab_size - 1
    for _, code in wanted:
        if not 0 <= code <= last:
            raise RefusalError("refused_code", got=code, last=last)
    return _pictures(workspace, wanted)


def _pictures(workspace: Workspace, wanted: list[tuple[Layer, int]]) -> dict[str, Any]:
    """One strip with the pictures side by side, and the share of each code among the training tokens."""
    tiles = workspace.opened.tiles(wanted)
    used = [(workspace.opened.usage(layer.codebook), code) for layer, code in wanted]
    return {
        "tile": TILE,
        "strip": data_url(torch.cat(tiles, dim=2)) if tiles else None,
        "trained": [None if share is None else float(share[code]) for share, code in used],
    }


def _order(workspace: Workspace, layer: Layer) -> Tensor:
    """All codes, most used first; equally used ones by number."""
    here = _counts(workspace, layer.codebook)
    if len(here) > MOST_LISTED:
        return here.nonzero().flatten()
    used = workspace.opened.usage(layer.codebook)
    by_picture = here.argsort(descending=True, stable=True)
    return by_picture if used is None else by_picture[used[by_picture].argsort(descending=True, stable=True)]


def _counts(workspace: Workspace, codebook: int) -> Tensor:
    """Count of each code of a codebook among the encoder's tokens, so that painting does not reorder the wall."""
    sequence = workspace.encoded.tokens.flatten()[0].cpu()
    layers = [layer for layer in workspace.layers if layer.codebook == codebook]
    chosen = torch.cat([sequence[[layer.position(cell) for cell in range(layer.count)]] for layer in layers])
    return count_codes(chosen, workspace.opened.tokenizer.vocab_size)
