"""Processes many rows in tiles, so that an intermediate (rows, codes) matrix is never in memory as a whole.

The backward pass recomputes each tile instead of storing it (activation checkpointing, Chen et al. 2016, arXiv
1604.06174): a third more arithmetic, memory of one tile.
"""

from collections.abc import Callable
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")

TILE_ENTRIES = 2**23  # entries of the largest intermediate of a tile: 32 MiB in fp32


def map_tiles(function: Callable[[Tensor], Result], z_ND: Float[Tensor, "n d"], columns: int) -> list[Result]:
    """Results of `function` for consecutive tiles of the rows of `z_ND`; at least one result, even without rows.

    Args:
        function: takes a tile (n, D). It may be random: the backward pass draws the same numbers again.
        z_ND: all rows.
        columns: width of the largest intermediate matrix in `function`; determines the number of rows per tile.
    """
    rows = max(1, TILE_ENTRIES // columns)
    if z_ND.shape[0] <= rows:
        return [function(z_ND)]
    return [checkpoint(function, tile, use_reentrant=False) for tile in z_ND.split(rows)]
