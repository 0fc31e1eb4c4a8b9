"""Token maps: which positions of a flat token sequence lie on one grid.

A layer is a scale, a residual level, a group of channels, or the single map of a plain tokenizer.

一个“层”是一张词元图：一个尺度、一个残差层、一组通道，或普通分词器仅有的一张图。
"""

import math
from dataclasses import dataclass
from typing import Literal

from smalti.playground.words import RefusalError
from smalti.quantizers import MultiScaleQuantizer, ResidualQuantizer
from smalti.quantizers.composite import CompositeQuantizer
from smalti.tokenizers import TiTok, Tokenizer
from smalti.tokenizers.tokens import Grids


@dataclass(frozen=True)
class Layer:
    """One token map. The token in row r and column c is at `first + (r * columns + c) * step` in `Tokens.flatten`."""

    kind: Literal["map", "scale", "level", "part"]
    """Kind of the layer, for its title."""
    number: int
    """Number among the layers of the model, from 0."""
    first: int
    """Position of its first token in the flat sequence."""
    step: int
    """Distance of two of its tokens in the flat sequence."""
    rows: int
    """Rows of the grid."""
    columns: int
    """Columns of the grid."""
    count: int
    """Number of tokens; with tokens that have no place the last row may be incomplete."""
    spatial: bool
    """Whether a token belongs to a place in the picture; False: each token describes the whole picture."""
    codebook: int
    """Layers with the same number share one codebook."""

    def position(self, cell: int) -> int:
        """Position in the flat sequence of a cell, counted in raster order."""
        if not 0 <= cell < self.count:
            raise RefusalError("refused_cell", got=cell, last=self.count - 1)
        return self.first + cell * self.step


def layers_of(tokenizer: Tokenizer, grids: Grids) -> tuple[Layer, ...]:
    """The layers of tokens with these grids, in the order of the flat sequence."""
    quantizer, spatial = tokenizer.quantizer, not isinstance(tokenizer, TiTok)
    codes = len(quantizer.code_shape)
    layers: list[Layer] = []
    first = 0
    for scale, grid in enumerate(grids):
        places, step = grid[: len(grid) - codes], math.prod(grid[len(grid) - codes :])
        count = math.prod(places)
        columns = places[-1] if spatial else math.ceil(math.sqrt(count))
        for code in range(step):
            layers.append(
                Layer(
                    kind=_kind(tokenizer, len(grids), step),
                    number=len(layers),
                    first=first + code,
                    step=step,
                    rows=math.ceil(count / columns),
                    columns=columns,
                    count=count,
                    spatial=spatial,
                    codebook=_codebook(tokenizer, scale, code, step),
                )
            )
        first += count * step
    return tuple(layers)


def _kind(tokenizer: Tokenizer, scales: int, codes: int) -> Literal["map", "scale", "level", "part"]:
    if scales > 1:
        return "scale"
    if codes == 1:
        return "map"
    return "level" if isinstance(tokenizer.quantizer, ResidualQuantizer) else "part"


def _codebook(tokenizer: Tokenizer, scale: int, code: int, codes: int) -> int:
    """Number of the codebook that a layer takes its codes from."""
    quantizer = tokenizer.quantizer
    book, inner = 0, quantizer
    if isinstance(quantizer, MultiScaleQuantizer):
        book, inner = quantizer.codebook_of_scale[scale], quantizer.quantizer
    shared = isinstance(inner, CompositeQuantizer) and len(inner.quantizers) == 1
    return book * codes + (0 if shared else code)
