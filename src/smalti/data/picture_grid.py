"""Arranges rows of pictures in one picture."""

import torch
from jaxtyping import UInt8
from torch import Tensor

from smalti.ops.pixels import to_uint8

GAP = 2
"""White pixels between pictures."""


def picture_grid(rows: list[Tensor]) -> UInt8[Tensor, "c height width"]:
    """Rows of float images (B, C, H, W) in [-1, 1], equal in shape, as one uint8 picture with white gaps."""
    columns, channels, height, width = rows[0].shape
    tall, wide = height + GAP, width + GAP
    grid = torch.full((channels, len(rows) * tall - GAP, columns * wide - GAP), 255, dtype=torch.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(to_uint8(row).cpu()):
            grid[:, r * tall : r * tall + height, c * wide : c * wide + width] = picture
    return grid
