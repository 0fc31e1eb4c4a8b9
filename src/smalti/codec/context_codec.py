"""The context coder of token files: tokens of images to bytes and back, with a `ContextModel`.

Encoding and decoding use the same loop over layers and waves: the neighbours of a wave are known on both sides, the
model computes weights for its tokens, and the range coder writes or reads the tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import final

import numpy as np
from jaxtyping import Int64

from smalti.codec.context_model import ContextModel
from smalti.codec.neighbourhood import layers_of, neighbours, num_layers
from smalti.formats.symbol_coder import SymbolDecoder, SymbolEncoder
from smalti.formats.token_codec import Grids, TokenCodec

Code = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Function of weights and symbols: an encoder writes the symbols; a decoder ignores them and reads others. Returned:
the symbols written or read."""


@final
@dataclass(frozen=True, eq=False)
class ContextCodec(TokenCodec):
    """A context model with the fingerprint of the tokenizer that it was trained for."""

    model: ContextModel
    """The model that predicts the tokens."""
    tokenizer: str
    """See `TokenCodec`."""
    fingerprint: str
    """See `TokenCodec`."""
    grids: Grids
    """See `TokenCodec`."""

    @property
    def vocab_size(self) -> int:
        """See `TokenCodec`."""
        return len(self._rank_of)

    @cached_property
    def _rank_of(self) -> Int64[np.ndarray, " k"]:
        """Rank of each code."""
        codes = self.model.members.ravel()
        rank_of = np.empty(int(codes.max()) + 1, np.int64)
        rank_of[codes[codes >= 0]] = np.flatnonzero(codes >= 0)
        return rank_of

    def encode(self, images: Sequence[tuple[Grids, Int64[np.ndarray, " _"]]]) -> bytes:
        """See `TokenCodec.encode`."""
        coder = SymbolEncoder()
        for grids, indices in images:
            self._walk(grids, self._rank_of[indices], coder.code)
        return coder.finish()

    def decode(self, data: bytes, grids: Sequence[Grids]) -> list[Int64[np.ndarray, " _"]]:
        """See `TokenCodec.decode`."""
        coder = SymbolDecoder(data)
        nothing = self.model.members.size
        decoded = []
        for image_grids in grids:
            ranks = np.full(sum(map(prod, image_grids)), nothing)
            decoded.append(self.model.members.ravel()[self._walk(image_grids, ranks, coder.code)].astype(np.int64))
        coder.finish()
        if any(indices.size and indices.min() < 0 for indices in decoded):
            raise ValueError("entropy-coded tokens: got a symbol that stands for no code, expected an undamaged file")
        return decoded

    def _walk(self, grids: Grids, ranks_L: Int64[np.ndarray, " l"], code: Code) -> Int64[np.ndarray, " l"]:
        """Code the tokens of an image, coarse to fine, wave by wave."""
        expected = len(self.model.first_bias)
        if num_layers(grids) != expected:
            raise ValueError(
                f"grids: got {num_layers(grids)} token maps per image, expected {expected} as in the codec's training"
            )
        layers = layers_of(grids)
        M = self.model.members.shape[1]
        # The last entry is for positions outside the image
        ranks = np.append(ranks_L, self.model.members.size)
        for number, layer in enumerate(layers):
            for y_N, x_N in layer.waves():
                places_N = layer.places(y_N, x_N)
                around_NC = ranks[neighbours(layers, number, y_N, x_N, len(ranks_L))]
                prediction = self.model.predict(around_NC, number)
                groups_N = code(prediction.group_weights_NG, ranks[places_N] // M)
                weights_NM = self.model.member_weights(prediction, groups_N, number)
                ranks[places_N] = groups_N * M + code(weights_NM, ranks[places_N] % M)
        return ranks[:-1]
