"""A picture for the eye: originals above, their reconstructions below."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from smalti.ops.pixels import to_uint8
from smalti.tokenizers import Tokenizer

GAP = 2
"""White pixels between pictures."""


@torch.no_grad()
def reconstruction_grid(model: Tokenizer, image: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "c height width"]:
    """Images (B, C, H, W) in [-1, 1] in one row, and in the row below what a model in eval mode makes of them."""
    return picture_grid([image, model(image).reconstruction])


def picture_grid(rows: list[Tensor]) -> UInt8[Tensor, "c height width"]:
    """Rows of float images (B, C, H, W) in [-1, 1], equal in shape, as one uint8 picture with white gaps."""
    columns, channels, height, width = rows[0].shape
    tall, wide = height + GAP, width + GAP
    grid = torch.full((channels, len(rows) * tall - GAP, columns * wide - GAP), 255, dtype=torch.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(to_uint8(row).cpu()):
            grid[:, r * tall : r * tall + height, c * wide : c * wide + width] = picture
    return grid
