"""Integers packed at ceil(log2 K) bits each, without gaps.

Bits are in reading order: first integer first, most significant bit first. The last byte is padded with zeros. Example:
the integers 1, 2, 7 with K = 8 become the bits 001 010 111 and 7 zeros: bytes 0x2B 0x80. This is not entropy coding,
which needs a model of the frequencies; see `range_coding.py`.
"""

import numpy as np
from jaxtyping import Int64

MAX_VOCAB_SIZE = 2**63
"""Largest K, because indices are int64."""
CHUNK = 1 << 16
"""Integers packed per chunk, 4 MB. A multiple of 8, so that every chunk fills whole bytes."""


def bits_per_index(vocab_size: int) -> int:
    """ceil(log2 K), computed without floats: 0 for K = 1, 9 for K = 512, 10 for K = 513.

    Raises:
        ValueError: `vocab_size` is below 1 or above 2 ** 63.
    """
    if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
        raise ValueError(f"vocab_size: got {vocab_size}, expected 1 to 2 ** 63")
    return (vocab_size - 1).bit_length()


def packed_size(count: int, vocab_size: int) -> int:
    """Size of `count` packed indices in bytes."""
    return -(-count * bits_per_index(vocab_size) // 8)


def pack(indices: Int64[np.ndarray, " n"], vocab_size: int) -> bytes:
    """Pack indices (N,) in [0, vocab_size) into `packed_size(N, vocab_size)` bytes.

    Raises:
        ValueError: an index is outside [0, vocab_size).
    """
    bits = bits_per_index(vocab_size)
    if indices.size:
        for index in (int(indices.min()), int(indices.max())):
            if not 0 <= index < vocab_size:
                raise ValueError(f"indices: got {index}, expected 0 to {vocab_size - 1}")
    chunks = []
    for start in range(0, indices.size if bits else 0, CHUNK):
        big_endian = indices[start : start + CHUNK].astype(">u8").view(np.uint8).reshape(-1, 8)
        chunks.append(np.packbits(np.unpackbits(big_endian, axis=1)[:, 64 - bits :]).tobytes())
    return b"".join(chunks)


def unpack(data: bytes, count: int, vocab_size: int) -> Int64[np.ndarray, " n"]:
    """Inverse of `pack`: `packed_size(count, vocab_size)` bytes to int64 (count,).

    Raises:
        ValueError: wrong number of bytes, an index outside [0, vocab_size), or padding bits that are not zero.
    """
    bits = bits_per_index(vocab_size)
    if len(data) != packed_size(count, vocab_size):
        raise ValueError(
            f"data: got {len(data)} bytes, expected {packed_size(count, vocab_size)} for {count} indices of {bits} bits"
        )
    filling = len(data) * 8 - count * bits
    if filling and data[-1] & ((1 << filling) - 1):
        raise ValueError("data: the bits after the last index are not zero")
    indices = np.zeros(count, dtype=np.int64)
    for start in range(0, count if bits else 0, CHUNK):
        length = min(CHUNK, count - start)
        first_byte = start * bits // 8
        chunk = np.frombuffer(data, np.uint8, count=-(-length * bits // 8), offset=first_byte)
        padded = np.zeros((length, 64), dtype=np.uint8)
        padded[:, 64 - bits :] = np.unpackbits(chunk, count=length * bits).reshape(length, bits)
        indices[start : start + length] = np.packbits(padded, axis=1).view(">u8")[:, 0]
    if count and int(indices.max()) >= vocab_size:
        raise ValueError(f"indices: got {int(indices.max())}, expected 0 to {vocab_size - 1}")
    return indices
