"""Positions of tokens, their coding order, and the neighbours that form the context of each token.

The tokens of an image form layers: one per scale; with Q codes per position, Q per scale. Layers are coded in order.
Within a layer, all tokens with equal x + 2y form a wave and are coded at once, because their context in this layer
belongs to earlier waves. As in raster order, the context is above and left, but only w + 2h - 2 steps are needed.

Legend: N tokens of a wave, C neighbours, h x w the grid of a layer.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

WITHIN = ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, -2), (-2, -1), (-2, 1), (-2, 2))
"""Neighbours in the same layer as (dy, dx), all with dx + 2 dy < 0."""
RADII = (1, 1, 0)
"""Context radius around the same position in the previous layer, the one before it, and so on."""


class Layer(NamedTuple):
    """A map of tokens in the sequence of an image."""

    height: int
    width: int
    start: int
    """Place of its first token in the sequence."""
    step: int
    """Distance from one token to the next in the sequence: Q."""

    def places(self, y: Int64[np.ndarray, "*n"], x: Int64[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
        """Places in the sequence."""
        return self.start + (y * self.width + x) * self.step

    def waves(self) -> Iterator[tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]]:
        """Coordinates y and x of the tokens of each wave, from top to bottom."""
        for t in range(self.width + 2 * self.height - 2):
            y_N = np.arange(max(0, (t - self.width + 2) // 2), min(self.height - 1, t // 2) + 1)
            if len(y_N):  # a map of one column has a token in every other wave
                yield y_N, t - 2 * y_N


def num_layers(grids: Sequence[tuple[int, ...]]) -> int:
    """Number of layers for these grids, without creating them: a damaged file may declare any number."""
    return sum(prod(grid[2:]) for grid in grids)


def layers_of(grids: Sequence[tuple[int, ...]]) -> list[Layer]:
    """Layers of an image with these grids: (h, w), (h, w, *code_shape), or a line (n,)."""
    layers = []
    start = 0
    for grid in grids:
        height, width = grid[:2] if len(grid) > 1 else (1, prod(grid))
        codes = prod(grid[2:])
        layers += [Layer(height, width, start + q, codes) for q in range(codes)]
        start += prod(grid)
    return layers


def num_neighbours(num_layers: int) -> int:
    """C; with a single layer there are no neighbours in earlier layers."""
    above = sum((2 * radius + 1) ** 2 for radius in RADII)
    return len(WITHIN) + (above if num_layers > 1 else 0)


def neighbours(
    layers: Sequence[Layer], number: int, y_N: Int64[np.ndarray, " n"], x_N: Int64[np.ndarray, " n"], nothing: int
) -> Int64[np.ndarray, "n c"]:
    """Places in the sequence (N, C) of the neighbours of tokens in layer `number`; `nothing` for no token."""
    own = layers[number]
    columns = [_places(own, y_N[:, None], x_N[:, None], *_within(), nothing)]
    for distance, radius in enumerate(RADII if len(layers) > 1 else (), start=1):
        dy, dx = _square(radius)
        if number < distance:
            columns.append(np.full((len(y_N), len(dy)), nothing))
            continue
        other = layers[number - distance]
        y = (2 * y_N + 1) * other.height // (2 * own.height)  # the cell that contains the centre of this one
        x = (2 * x_N + 1) * other.width // (2 * own.width)
        columns.append(_places(other, y[:, None], x[:, None], dy, dx, nothing))
    return np.concatenate(columns, axis=1)


@cache
def _within() -> tuple[np.ndarray, np.ndarray]:
    dy, dx = np.array(WITHIN).T
    return dy, dx


@cache
def _square(radius: int) -> tuple[np.ndarray, np.ndarray]:
    """All (dy, dx) up to `radius`, in raster order."""
    dy, dx = np.indices((2 * radius + 1, 2 * radius + 1)).reshape(2, -1) - radius
    return dy, dx


def _places(layer: Layer, y: np.ndarray, x: np.ndarray, dy: np.ndarray, dx: np.ndarray, nothing: int) -> np.ndarray:
    y, x = y + dy, x + dx
    inside = (y >= 0) & (y < layer.height) & (x >= 0) & (x < layer.width)
    return np.where(inside, layer.places(y, x), nothing)
