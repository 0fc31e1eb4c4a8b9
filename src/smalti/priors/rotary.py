"""Rotary positions in two dimensions: queries and keys are rotated by angles of row and column.

Source: Su et al. 2021, "RoFormer" (arXiv 2104.09864); half of the dimensions rotate by row, half by column,
as in LlamaGen (Sun et al. 2024, arXiv 2406.06525) and its published weights.

Legend: B images, H heads, n tokens, d dimensions per head.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def rotary_table(
    grid: tuple[int, int], head_dim: int, *, codes: int = 1, base: float = 10000.0
) -> Float[Tensor, "l half 2"]:
    """Cosine and sine (1 + h · w · codes, d / 2, 2) for a class token followed by a grid in raster order.

    The class token gets zeros for both, as in LlamaGen's training. Its queries and keys are then zero, and every token
    attends to the class with score 0.

    Args:
        grid: rows h and columns w.
        head_dim: d, a multiple of 4.
        codes: tokens per position; they share its angles.
        base: the slowest angle grows by 1 / base per step.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim: got {head_dim}, expected a multiple of 4 for rotary positions in two dimensions")
    frequencies = 1.0 / base ** (torch.arange(0, head_dim // 2, 2) / (head_dim // 2))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).repeat_interleave(codes, dim=0)
    angles = (places.unsqueeze(2) * frequencies).flatten(1)
    table = torch.stack([angles.cos(), angles.sin()], dim=2)
    return torch.cat([torch.zeros_like(table[:1]), table])


def rotate(x: Float[Tensor, "b h n d"], table: Float[Tensor, "n half 2"]) -> Float[Tensor, "b h n d"]:
    """Rotate each pair of neighbouring dimensions (2i, 2i + 1), as a complex number, by the angle of its token."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(table.float())).flatten(-2).to(x.dtype)
