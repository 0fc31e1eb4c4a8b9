"""Tokens: the token maps of images, with all that is needed to flatten them to a sequence and back.

词元：图像的词元图，可展平为一个序列，也可还原。

Bits of binary quantizers (`bitwise` in `quantizers/binary.py`) are tokens, too: uint8, 0 or 1, with one axis more.

Legend: B images, K scales, grid_k the shape of scale k, l_k its number of tokens, L the sum of all l_k.
图例：B 张图像，K 个尺度，grid_k 为第 k 个尺度的形状，l_k 为其词元数，L 为全部 l_k 之和。
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

Grids = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token indices of a batch of images, coarse to fine."""

    indices: tuple[Shaped[Tensor, "..."], ...]
    """One int64 (B, *grid_k) per scale, coarse to fine; a single-scale tokenizer has one. Bits are uint8, and the grid
    has their number as its last axis: (B, h_k, w_k, d)."""
    image_size: tuple[int, int]
    """Height and width in pixels of the images that were encoded."""
    vocab_size: int
    """Indices lie in [0, vocab_size)."""
    image_dtype: torch.dtype = torch.float32
    """Dtype of the images before encoding and after decoding: torch.uint8 (0 to 255) or a float dtype (-1 to 1)."""
    fingerprint: str = ""
    """`Tokenizer.fingerprint` of the model that made the tokens; other models refuse them. "": unknown, see
    `Tokenizer.encode`."""

    def __post_init__(self) -> None:
        allowed = (torch.int64, torch.uint8) if self.vocab_size == 2 else (torch.int64,)
        if not self.indices or any(scale.dtype not in allowed for scale in self.indices):
            raise ValueError(f"indices: got {[scale.dtype for scale in self.indices]}, expected int64, or uint8 bits")
        if any(scale.dim() < 2 or scale.shape[0] != self.indices[0].shape[0] for scale in self.indices):
            shapes = [tuple(scale.shape) for scale in self.indices]
            raise ValueError(f"indices: got shapes {shapes}, expected (B, *grid) with equal B")
        if self.image_dtype != torch.uint8 and not self.image_dtype.is_floating_point:
            raise ValueError(f"image_dtype: got {self.image_dtype}, expected torch.uint8 or a floating-point dtype")

    @property
    def grids(self) -> Grids:
        """Shape of each scale, coarse to fine, such as ((1, 1), (2, 2), (4, 4))."""
        return tuple(tuple(scale.shape[1:]) for scale in self.indices)

    @property
    def num_tokens(self) -> int:
        """Tokens per image, L."""
        return sum(prod(grid) for grid in self.grids)

    def __len__(self) -> int:
        return self.indices[0].shape[0]

    def __getitem__(self, images: int | slice) -> "Tokens":
        """Tokens of one image of the batch (B becomes 1), or of a slice of images."""
        if not isinstance(images, slice):
            image = range(len(self))[images]
            images = slice(image, image + 1)
        return replace(self, indices=tuple(scale[images] for scale in self.indices))

    def to(self, device: torch.device | str | int) -> "Tokens":
        """The same tokens on another device."""
        return replace(self, indices=tuple(scale.to(device) for scale in self.indices))

    def flatten(self) -> Int64[Tensor, "b l"]:
        """One sequence per image (B, L): scales coarse to fine, each in raster order."""
        return torch.cat([scale.flatten(1) for scale in self.indices], dim=1).long()

    def bits(self) -> UInt8[Tensor, "b l d"]:
        """The bits of each position (B, L, d), uint8: scales coarse to fine, each in raster order.

        Raises:
            ValueError: the tokens are not bits.
        """
        if self.vocab_size != 2 or min(scale.dim() for scale in self.indices) < 4:
            raise ValueError(f"bits: got tokens of {self.vocab_size} codes, expected 2 codes, several per position")
        return torch.cat([scale.flatten(1, -2) for scale in self.indices], dim=1).to(torch.uint8)

    @classmethod
    def unflatten(
        cls,
        sequence: Shaped[Tensor, "..."],
        grids: Sequence[Sequence[int]],
        image_size: tuple[int, int],
        vocab_size: int,
        image_dtype: torch.dtype = torch.float32,
    ) -> "Tokens":
        """Inverse of `flatten`: sequence (B, L) to maps of the given grids.

        Raises:
            ValueError: L is not the number of tokens of the grids.
        """
        ends = [0]
        for grid in grids:
            ends.append(ends[-1] + prod(grid))
        if sequence.dim() != 2 or sequence.shape[1] != ends[-1]:
            raise ValueError(f"sequence: got shape {tuple(sequence.shape)}, expected (B, {ends[-1]}) for grids {grids}")
        pieces = zip(pairwise(ends), grids, strict=True)
        indices = tuple(sequence[:, a:b].reshape(-1, *grid) for (a, b), grid in pieces)
        return cls(indices, image_size, vocab_size, image_dtype)
