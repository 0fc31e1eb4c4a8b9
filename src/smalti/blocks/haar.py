"""The Haar wavelet transform: pixels to channels and back without loss, the first and last step of Cosmos' tokenizers.

Source: Haar 1910; in a tokenizer, NVIDIA 2024, "Cosmos Tokenizer". A round computes sums and differences of each 2x2
square; the next round takes all of them, not only the sums.

Legend: B images, C channels, H x W pixels; L sum and H difference, first of columns, then of rows.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def haar(x: Float[Tensor, "b c H W"], rounds: int) -> Float[Tensor, "b c4 h w"]:
    """(B, C, H, W) to (B, 4 ** rounds * C, H / 2 ** rounds, W / 2 ** rounds), channels in the order LL, LH, HL, HH.

    LL is the mean of its square, so values keep their range.
    """
    for _ in range(rounds):
        left, right = x[..., ::2], x[..., 1::2]
        columns = (left + right, left - right)
        pairs = [(part[..., ::2, :], part[..., 1::2, :]) for part in columns]
        x = torch.cat([part for top, bottom in pairs for part in (top + bottom, top - bottom)], dim=1) / 4
    return x


def inverse_haar(x: Float[Tensor, "b c4 h w"], rounds: int) -> Float[Tensor, "b c H W"]:
    """(B, 4 ** rounds * C, h, w) to (B, C, h * 2 ** rounds, w * 2 ** rounds): the inverse of `haar`."""
    for _ in range(rounds):
        ll, lh, hl, hh = x.chunk(4, dim=1)
        sums, differences = _interleaved(ll + lh, ll - lh, -2), _interleaved(hl + hh, hl - hh, -2)
        x = _interleaved(sums + differences, sums - differences, -1)
    return x


def _interleaved(even: Tensor, odd: Tensor, axis: int) -> Tensor:
    """Rows or columns of both tensors in alternation."""
    return torch.stack([even, odd], dim=axis).flatten(axis - 1, axis)
