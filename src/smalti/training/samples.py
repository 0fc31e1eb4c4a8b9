"""A picture for the eye: originals above, their reconstructions below."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from smalti.data import picture_grid
from smalti.tokenizers import Tokenizer


@torch.no_grad()
def reconstruction_grid(model: Tokenizer, image: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "c height width"]:
    """Images (B, C, H, W) in [-1, 1] in one row, and in the row below what a model in eval mode makes of them."""
    return picture_grid([image, model(image).reconstruction])
