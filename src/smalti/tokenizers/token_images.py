"""Conversion between tokens of one image and an image of a token file."""

import torch

from smalti.formats import TokenImage
from smalti.tokenizers.tokens import Tokens


def to_token_image(name: str, tokens: Tokens, channels: int) -> TokenImage:
    """Tokens of one image (B = 1) as an image of a token file. `to_tokens` is the inverse."""
    if len(tokens) != 1:
        raise ValueError(f"tokens: got {len(tokens)} images, expected one")
    return TokenImage(name, tokens.image_size, channels, tokens.grids, tokens.flatten()[0].cpu().numpy())


def to_tokens(image: TokenImage, vocab_size: int) -> Tokens:
    """An image of a token file as tokens with B = 1, for decoding to uint8.

    `to_token_image` is the inverse.
    """
    sequence = torch.tensor(image.indices)[None]
    return Tokens.unflatten(sequence, image.grids, image.image_size, vocab_size, torch.uint8)
