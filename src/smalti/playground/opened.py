"""An opened tokenizer with what the page needs beside it: code usage, and the picture of each code.

Shared by all browser tabs. Pictures of codes are decoded when they are first asked for, and kept.
"""

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from smalti.playground.layers import Layer, layers_of
from smalti.priors import Prior
from smalti.quantizers import MultiScaleQuantizer
from smalti.tokenizers import TiTok, Tokenizer, Tokens

TILE = 32
"""Side in pixels of the picture of a code."""
LONGEST = 512
"""Longest side of a picture on the page; larger ones are reduced."""
PIXELS_AT_ONCE = 2**17
"""Pixels decoded in one batch for the pictures of codes."""


class Opened:
    """A tokenizer on the page.

    Args:
        name: name shown on the page.
        tokenizer: in eval mode, on its device.
    """

    def __init__(self, name: str, tokenizer: Tokenizer):
        self.name, self.tokenizer = name, tokenizer
        self.prior: Prior | None = None
        self.device = next(tokenizer.parameters()).device
        whole = isinstance(tokenizer, TiTok)  # its stride is the side of the largest image
        self.longest = min(LONGEST, tokenizer.stride) if whole else LONGEST
        side = tokenizer.stride * (1 if whole else max(1, TILE // tokenizer.stride))
        grey = torch.full((1, tokenizer.image_channels, side, side), 127, dtype=torch.uint8, device=self.device)
        self._grey = tokenizer.encode(grey)
        self._tiles: dict[tuple[int, int], UInt8[Tensor, "3 h w"]] = {}
        self._usage: dict[int, Tensor] | None = None
        self._lock = Lock()

    def layers(self, tokens: Tokens) -> tuple[Layer, ...]:
        """The token maps of tokens of this tokenizer."""
        return layers_of(self.tokenizer, tokens.grids)

    def usage(self, codebook: int) -> Float[Tensor, " k"] | None:
        """Share of each code among the training tokens of a codebook; None: the model kept no count."""
        with self._lock:
            if self._usage is None:
                self._usage = self._count()
        return self._usage.get(codebook)

    def _count(self) -> dict[int, Tensor]:
        counts = self.tokenizer.quantizer.code_counts()
        sums: dict[int, Tensor] = {}
        for layer, count in zip(layers_of(self.tokenizer, self._grey.grids), counts or [], strict=False):
            sums[layer.codebook] = sums.get(layer.codebook, 0) + count.cpu().double()
        return {book: (total / total.sum().clamp(min=1)).float() for book, total in sums.items()}

    def tiles(self, wanted: Sequence[tuple[Layer, int]]) -> list[UInt8[Tensor, "3 side side"]]:
        """The picture of each (layer, code): an area in which every token of the layer is this code.

        The tokenizer decodes it alone where it can (a single map, or scales that share a codebook); otherwise the
        other layers hold the tokens of plain grey.
        """
        with self._lock:
            missing: dict[int, dict[int, Layer]] = {}
            for layer, code in wanted:
                if (self._place(layer), code) not in self._tiles:
                    missing.setdefault(self._place(layer), {})[code] = layer
            for place, codes in missing.items():
                self._add_tiles(place, next(iter(codes.values())), list(codes))
            return [self._tiles[self._place(layer), code] for layer, code in wanted]

    def _place(self, layer: Layer) -> int:
        """Layers with the same number here have the same pictures."""
        return layer.codebook if self._alone else layer.number

    def _add_tiles(self, place: int, layer: Layer, codes: list[int]) -> None:
        at_once = max(1, PIXELS_AT_ONCE // (self._grey.image_size[0] * self._grey.image_size[1]))
        for start in range(0, len(codes), at_once):
            batch = codes[start : start + at_once]
            for code, picture in zip(batch, self._decode(layer, batch), strict=True):
                self._tiles[place, code] = picture

    @property
    def _alone(self) -> bool:
        """Whether a code can be decoded without any other layer."""
        quantizer = self.tokenizer.quantizer
        shared = isinstance(quantizer, MultiScaleQuantizer) and len(quantizer.quantizers) == 1
        return not quantizer.code_shape and (len(self._grey.indices) == 1 or shared)

    def _decode(self, layer: Layer, codes: Sequence[int]) -> list[Tensor]:
        chosen = torch.tensor(codes, device=self.device)
        if self._alone:
            last = self._grey.indices[-1]
            filled = chosen.reshape(-1, *[1] * (last.dim() - 1)).expand(-1, *last.shape[1:]).contiguous()
            tokens = replace(self._grey, indices=(filled,))
        else:
            sequence = self._grey.flatten().expand(len(codes), -1).clone()
            small = layers_of(self.tokenizer, self._grey.grids)[layer.number]
            sequence[:, [small.position(cell) for cell in range(small.count)]] = chosen[:, None]
            tokens = with_sequence(self._grey, sequence)
        return [_tile(image) for image in self.tokenizer.decode(tokens)]


def with_sequence(tokens: Tokens, sequence: Tensor) -> Tokens:
    """The tokens with other indices, given as one flat sequence per image."""
    made = Tokens.unflatten(sequence, tokens.grids, tokens.image_size, tokens.vocab_size)
    return replace(tokens, indices=made.indices)


def _tile(image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "3 side side"]:
    """An image as RGB of `TILE` x `TILE` pixels."""
    array = image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(array).resize((TILE, TILE), Image.Resampling.BOX)
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(TILE, TILE, 3).permute(2, 0, 1)
