"""Work through many rows a tile at a time, so that an intermediate (rows, codes) matrix never exists whole.

In the backward pass each tile is computed again instead of being kept (activation checkpointing, Chen et al. 2016,
arXiv 1604.06174): a third more arithmetic, memory of one tile.
"""

from collections.abc import Callable
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")

TILE_ENTRIES = 2**23  # entries of the largest intermediate of a tile: 32 MiB in fp32


def map_tiles(function: Callable[[Tensor], Result], z_ND: Float[Tensor, "n d"], columns: int) -> list[Result]:
    """Results of `function` on consecutive tiles of the rows of `z_ND`; at least one, even for no rows.

    Args:
        function: of a tile (n, D); may be random, the same numbers are drawn again for the backward pass.
        z_ND: all rows.
        columns: width of the largest intermediate matrix that `function` makes; decides the rows in a tile.
    """
    rows = max(1, TILE_ENTRIES // columns)
    if z_ND.shape[0] <= rows:
        return [function(z_ND)]
    return [checkpoint(function, tile, use_reentrant=False) for tile in z_ND.split(rows)]
