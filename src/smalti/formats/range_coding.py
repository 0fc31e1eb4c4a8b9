"""Entropy coding of tokens: frequent tokens take fewer than log2 K bits, rare ones more.

Each scale has a table of token counts. It starts with the tokenizer's counts from training (or uniform) and is updated
after each block of tokens, identically when encoding and decoding. Tables hold integers only, so every machine decodes
the same tokens; see `symbol_coder.py`.

Legend: K vocabulary, n tokens.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Int64

from smalti.formats.symbol_coder import categorical, constriction, whole_frequencies

Grids = tuple[tuple[int, ...], ...]
PLANE = 2
"""Axes of a grid that are positions; a third axis numbers the codes of one position."""
MAX_VOCABULARY = 2**20
"""With larger vocabularies, the frequencies are too coarse to tell tokens apart."""
BLOCK = 64
"""Tokens coded before the table is updated."""
INCREMENT = 32
"""Added to a token's count when it occurs. Every count starts with at least 1."""
LEARNED_WEIGHT = 2**14
"""Initial sum of learned counts: their weight in observed tokens, times `INCREMENT`."""


def encode_tokens(
    scales: Sequence[Int64[np.ndarray, " _"]], vocab_size: int, tables: Sequence[Int64[np.ndarray, " _"]] | None = None
) -> bytes:
    """Encode the tokens of all scales as one byte stream.

    Args:
        scales: the tokens of each scale, in [0, vocab_size).
        vocab_size: K, at most `MAX_VOCABULARY`.
        tables: initial token counts for each scale; None: uniform.

    Raises:
        ValueError: the number of tables differs from the number of scales.
    """
    _check_tables(scales, tables)
    if vocab_size == 1:  # no information to code
        return b""
    coder = constriction().stream.queue.RangeEncoder()
    for k, tokens in enumerate(scales):
        table = _Table(vocab_size, None if tables is None else tables[k])
        for start in range(0, len(tokens), BLOCK):
            block = tokens[start : start + BLOCK]
            coder.encode(block.astype(np.int32), table.model())
            table.learn(block)
    return coder.get_compressed().astype("<u4").tobytes()


def decode_tokens(
    data: bytes, lengths: Sequence[int], vocab_size: int, tables: Sequence[Int64[np.ndarray, " _"]] | None = None
) -> list[Int64[np.ndarray, " _"]]:
    """Inverse of `encode_tokens`, given the number of tokens of each scale.

    Raises:
        ValueError: the stream is too short or too long, or the number of tables differs from the number of scales.
    """
    _check_tables(lengths, tables)
    if vocab_size == 1 and not data:
        return [np.zeros(length, np.int64) for length in lengths]
    if len(data) % 4:
        raise ValueError(f"entropy-coded tokens: got {len(data)} bytes, expected a multiple of 4")
    coder = constriction().stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
    scales = []
    try:
        for k, length in enumerate(lengths):
            table = _Table(vocab_size, None if tables is None else tables[k])
            blocks = []
            for start in range(0, length, BLOCK):
                blocks.append(coder.decode(table.model(), min(BLOCK, length - start)).astype(np.int64))
                table.learn(blocks[-1])
            scales.append(np.concatenate(blocks) if blocks else np.zeros(0, np.int64))
    except (ValueError, AssertionError) as error:
        raise ValueError(f"entropy-coded tokens: the stream does not decode ({error})") from error
    if not coder.maybe_exhausted():
        raise ValueError("entropy-coded tokens: got bytes after the last token")
    return scales


def split_streams(
    images: Sequence[tuple[Grids, Int64[np.ndarray, " _"]]],
) -> list[Int64[np.ndarray, " _"]]:
    """Split the tokens of images (grids, all scales in a row) into one stream per scale and code number.

    A grid (h, w, Q) has Q codes per position, each with its own frequencies; a grid (h, w) has one.
    """
    streams: dict[tuple[int, int], list[np.ndarray]] = {}
    for grids, indices in images:
        for key, places in _places(grids):
            streams.setdefault(key, []).append(indices[places])
    return [np.concatenate(streams[key]) for key in sorted(streams)]


def stream_lengths(grids: Sequence[Grids]) -> list[int]:
    """Lengths of the streams for images with these grids."""
    lengths: dict[tuple[int, int], int] = {}
    for image_grids in grids:
        for key, places in _places(image_grids):
            lengths[key] = lengths.get(key, 0) + len(range(places.start, places.stop, places.step))
    return [lengths[key] for key in sorted(lengths)]


def join_streams(streams: Sequence[Int64[np.ndarray, " _"]], grids: Sequence[Grids]) -> list[Int64[np.ndarray, " _"]]:
    """Inverse of `split_streams`."""
    keys = sorted({key for image_grids in grids for key, _ in _places(image_grids)})
    left = dict(zip(keys, streams, strict=True))
    joined = [np.empty(_tokens(image_grids), np.int64) for image_grids in grids]
    for image_grids, indices in zip(grids, joined, strict=True):
        for key, places in _places(image_grids):
            length = len(indices[places])
            indices[places], left[key] = left[key][:length], left[key][length:]
    return joined


def _places(grids: Grids) -> Iterator[tuple[tuple[int, int], slice]]:
    """For each (scale, code number), the slice of its tokens in an image with all scales in a row."""
    start = 0
    for k, grid in enumerate(grids):
        codes = prod(grid[PLANE:])
        for q in range(codes):
            yield (k, q), slice(start + q, start + prod(grid), codes)
        start += prod(grid)


def check_indices(indices: Int64[np.ndarray, " n"], vocab_size: int) -> None:
    """Refuse tokens outside [0, vocab_size)."""
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < vocab_size:
        raise ValueError(f"indices: got {indices.min()} to {indices.max()}, expected 0 to {vocab_size - 1}")


def _check_tables(scales: Sequence[Any], tables: Sequence[Any] | None) -> None:
    if tables is not None and scales and len(tables) != len(scales):
        raise ValueError(f"tables: got {len(tables)}, expected {len(scales)}, one per stream")


def _tokens(grids: Grids) -> int:
    return sum(prod(grid) for grid in grids)


class _Table:
    """Token counts of one scale."""

    def __init__(self, vocab_size: int, learned_K: np.ndarray | None):
        if not 1 <= vocab_size <= MAX_VOCABULARY:
            raise ValueError(f"vocab_size: got {vocab_size}, expected 1 to {MAX_VOCABULARY} for entropy coding")
        self.counts_K = np.ones(vocab_size, np.int64)
        if learned_K is not None and learned_K.sum() > 0:
            self.counts_K += learned_K.astype(np.int64) * LEARNED_WEIGHT // int(learned_K.sum())

    def learn(self, tokens: np.ndarray) -> None:
        np.add.at(self.counts_K, tokens, INCREMENT)

    def model(self) -> Any:
        """The coder's model: frequencies that sum to 2**24."""
        return categorical(whole_frequencies(self.counts_K).astype(np.float64))
