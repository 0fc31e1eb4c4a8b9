"""The range coder of token files: symbols and whole-number weights in, bytes out, and back.

It is that of `constriction` (Bamler 2022, arXiv 2201.01741), which takes probabilities as floats and makes fixed-point
numbers of them by one division, multiplications and additions. It is given whole frequencies that sum up to 2**24:
doubles hold these and their partial sums exactly, and IEEE arithmetic does the rest alike on every machine. So all
machines decode the same bits, which the probabilities of a network, different in their last digits, could not promise.

Legend: N symbols, K symbols to choose from.
"""

from typing import Any

import numpy as np
from jaxtyping import Int64

__all__ = [
    "PRECISION",
    "MissingCoderError",
    "SymbolDecoder",
    "SymbolEncoder",
    "categorical",
    "constriction",
    "whole_frequencies",
]

PRECISION = 24
"""Bits of a probability in the coder."""


class MissingCoderError(ValueError):
    """The package that codes is not installed."""


def whole_frequencies(weights: Int64[np.ndarray, "*n k"]) -> Int64[np.ndarray, "*n k"]:
    """Frequencies that sum up to 2**24, each at least 1: by whole division, and the largest gets what is missing.

    Args:
        weights: at least 0, not all 0 in a row, and so small that weight · 2**24 fits int64.
    """
    weights_NK = weights.reshape(-1, weights.shape[-1])
    room = 2**PRECISION - weights_NK.shape[1]
    frequencies_NK = 1 + weights_NK * room // weights_NK.sum(axis=1, keepdims=True)
    missing_N = 2**PRECISION - frequencies_NK.sum(axis=1)
    frequencies_NK[np.arange(len(frequencies_NK)), weights_NK.argmax(axis=1)] += missing_N
    return frequencies_NK.reshape(weights.shape)


class SymbolEncoder:
    """Symbols to bytes."""

    def __init__(self) -> None:
        self._coder = constriction().stream.queue.RangeEncoder()

    def code(self, weights_NK: Int64[np.ndarray, "n k"], symbols_N: Int64[np.ndarray, " n"]) -> np.ndarray:
        """Code symbols of these weights; returns them."""
        self._coder.encode(symbols_N.astype(np.int32), categorical(), whole_frequencies(weights_NK).astype(np.float64))
        return symbols_N

    def finish(self) -> bytes:
        """What was coded, in words of four bytes."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class SymbolDecoder:
    """Inverse of `SymbolEncoder`, called with the same weights in the same order.

    Raises:
        ValueError: the bytes are no whole words.
    """

    def __init__(self, data: bytes):
        if len(data) % 4:
            raise ValueError(f"entropy-coded tokens: got {len(data)} bytes, expected a multiple of 4")
        self._coder = constriction().stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

    def code(self, weights_NK: Int64[np.ndarray, "n k"], symbols_N: Int64[np.ndarray, " n"]) -> np.ndarray:
        """The next symbols; what stands in `symbols_N` is not looked at.

        Raises:
            ValueError: the stream does not decode.
        """
        try:
            frequencies = whole_frequencies(weights_NK).astype(np.float64)
            return self._coder.decode(categorical(), frequencies).astype(np.int64)
        except (ValueError, AssertionError) as error:
            raise ValueError(f"entropy-coded tokens: the stream does not decode ({error})") from error

    def finish(self) -> None:
        """Refuse bytes that no symbol has asked for."""
        if not self._coder.maybe_exhausted():
            raise ValueError("entropy-coded tokens: bytes are left over")


def categorical(*frequencies_K: np.ndarray) -> Any:
    """The coder's model of symbols with given frequencies; without them, of a family whose frequencies come later."""
    return constriction().stream.model.Categorical(*frequencies_K, perfect=False)


def constriction() -> Any:
    """The package.

    Raises:
        MissingCoderError: it is not installed.
    """
    try:
        import constriction as package
    except ImportError as error:
        raise MissingCoderError("entropy coding needs constriction: pip install 'smalti[codec]'") from error
    return package
