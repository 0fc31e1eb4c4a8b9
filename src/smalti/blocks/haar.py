"""The Haar wavelet transform: pixels to channels and back without loss, as Cosmos' tokenizers begin and end.

Source: Haar 1910; before a tokenizer's first convolution, NVIDIA 2024, "Cosmos Tokenizer". A round takes the sums and
differences of each 2x2 square; the sums alone are the image at half the size, so the next round continues from all.

Legend: B images, C channels, H x W pixels; L sum and H difference, of columns first and of rows second.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def haar(x: Float[Tensor, "b c H W"], rounds: int) -> Float[Tensor, "b c4 h w"]:
    """(B, C, H, W) to (B, 4 ** rounds * C, H / 2 ** rounds, W / 2 ** rounds), channels in the order LL, LH, HL, HH.

    LL is the mean of its square, so that values keep their range.
    """
    for _ in range(rounds):
        left, right = x[..., ::2], x[..., 1::2]
        columns = (left + right, left - right)
        pairs = [(part[..., ::2, :], part[..., 1::2, :]) for part in columns]
        x = torch.cat([part for top, bottom in pairs for part in (top + bottom, top - bottom)], dim=1) / 4
    return x


def inverse_haar(x: Float[Tensor, "b c4 h w"], rounds: int) -> Float[Tensor, "b c H W"]:
    """What `haar` was given."""
    for _ in range(rounds):
        ll, lh, hl, hh = x.chunk(4, dim=1)
        sums, differences = _interleaved(ll + lh, ll - lh, -2), _interleaved(hl + hh, hl - hh, -2)
        x = _interleaved(sums + differences, sums - differences, -1)
    return x


def _interleaved(even: Tensor, odd: Tensor, axis: int) -> Tensor:
    """Rows or columns of the two in turn."""
    return torch.stack([even, odd], dim=axis).flatten(axis - 1, axis)
