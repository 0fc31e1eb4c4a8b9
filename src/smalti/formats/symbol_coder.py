"""The range coder of token files: symbols and integer weights in, bytes out, and the inverse.

It uses `constriction` (Bamler 2022, arXiv 2201.01741), which takes probabilities as floats and converts them to fixed
point by one division, multiplications and additions. Here it receives integer frequencies that sum to 2**24. Doubles
represent these and their partial sums exactly, and IEEE arithmetic gives equal results on every machine. Therefore
every machine decodes the same symbols. Float probabilities of a network, which differ in the last digits between
machines, cannot guarantee this.

Legend: N symbols, K symbols to choose from.
"""

from typing import Any

import numpy as np
from jaxtyping import Int64

PRECISION = 24
"""Bits of a probability in the coder."""


class MissingCoderError(ValueError):
    """The package constriction is not installed."""


def whole_frequencies(weights: Int64[np.ndarray, "*n k"]) -> Int64[np.ndarray, "*n k"]:
    """Frequencies that sum to 2**24, each at least 1, by integer division. The largest one receives the remainder.

    Args:
        weights: at least 0, not all 0 within a row, and small enough that weight · 2**24 fits int64.
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
        """Encode symbols with these weights. Returns the symbols."""
        self._coder.encode(symbols_N.astype(np.int32), categorical(), whole_frequencies(weights_NK).astype(np.float64))
        return symbols_N

    def finish(self) -> bytes:
        """The encoded bytes, a multiple of four."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class SymbolDecoder:
    """Inverse of `SymbolEncoder`, called with the same weights in the same order.

    Raises:
        ValueError: the number of bytes is not a multiple of four.
    """

    def __init__(self, data: bytes):
        if len(data) % 4:
            raise ValueError(f"entropy-coded tokens: got {len(data)} bytes, expected a multiple of 4")
        self._coder = constriction().stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

    def code(self, weights_NK: Int64[np.ndarray, "n k"], symbols_N: Int64[np.ndarray, " n"]) -> np.ndarray:
        """Decode the next symbols. The values in `symbols_N` are ignored.

        Raises:
            ValueError: the stream does not decode.
        """
        try:
            frequencies = whole_frequencies(weights_NK).astype(np.float64)
            return self._coder.decode(categorical(), frequencies).astype(np.int64)
        except (ValueError, AssertionError) as error:
            raise ValueError(f"entropy-coded tokens: the stream does not decode ({error})") from error

    def finish(self) -> None:
        """Refuse bytes after the last symbol."""
        if not self._coder.maybe_exhausted():
            raise ValueError("entropy-coded tokens: got bytes after the last token")


def categorical(*frequencies_K: np.ndarray) -> Any:
    """The coder's model for given frequencies. Without frequencies: a model family that receives them per symbol."""
    return constriction().stream.model.Categorical(*frequencies_K, perfect=False)


def constriction() -> Any:
    """Import the package.

    Raises:
        MissingCoderError: constriction is not installed.
    """
    try:
        import constriction as package
    except ImportError as error:
        raise MissingCoderError("entropy coding needs constriction: pip install 'smalti[codec]'") from error
    return package
