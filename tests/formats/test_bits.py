"""Packed integers against Python's own binary notation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.formats import bits_per_index, pack, packed_size, unpack
from smalti.formats.bits import CHUNK, MAX_VOCAB_SIZE

vocab_sizes = st.one_of(st.integers(1, 70), st.integers(1, 2**20), st.integers(1, MAX_VOCAB_SIZE))


def packed_by_notation(indices, vocab_size):
    """The same bits written out as text."""
    width = 0
    while 2**width < vocab_size:
        width += 1
    text = "".join(f"{index:0{width}b}" for index in indices) if width else ""
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


@given(data=st.data(), vocab_size=vocab_sizes)
def test_the_bits_are_those_of_binary_notation(data, vocab_size):
    indices = data.draw(st.lists(st.integers(0, vocab_size - 1), max_size=40))
    packed = pack(np.array(indices, dtype=np.int64), vocab_size)
    assert packed == packed_by_notation(indices, vocab_size)
    assert len(packed) == packed_size(len(indices), vocab_size)
    assert unpack(packed, len(indices), vocab_size).tolist() == indices


def test_the_documented_example():
    assert pack(np.array([1, 2, 7]), 8) == b"\x2b\x80"


@pytest.mark.parametrize(
    ("vocab_size", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (512, 9), (513, 10), (2**53 + 1, 54), (2**63, 63)]
)
def test_bits_are_exact_where_a_float_logarithm_is_not(vocab_size, bits):
    assert bits_per_index(vocab_size) == bits


@pytest.mark.parametrize("vocab_size", [3, 1000, 2**63])
@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_chunks_join_without_a_seam(vocab_size, count):
    indices = np.random.default_rng(count).integers(0, vocab_size, count, dtype=np.int64)
    packed = pack(indices, vocab_size)
    assert len(packed) == packed_size(count, vocab_size)
    np.testing.assert_array_equal(unpack(packed, count, vocab_size), indices)
    start = CHUNK - 16  # the seam lies in the middle of this piece, or at its end
    expected = packed_by_notation(indices[start:][:24].tolist(), vocab_size)
    first_byte = start * bits_per_index(vocab_size) // 8
    assert packed[first_byte:][: len(expected)] == expected


def test_a_strided_array_is_packed_by_value():
    indices = np.arange(24, dtype=np.int64).reshape(4, 6).T.flatten()[::2]
    assert unpack(pack(indices, 24), 12, 24).tolist() == indices.tolist()


@pytest.mark.parametrize(("index", "vocab_size"), [(-1, 4), (4, 4), (1, 1), (2**62, 3)])
def test_an_index_outside_the_vocabulary_is_refused(index, vocab_size):
    with pytest.raises(ValueError, match=f"indices: got {index}, expected 0 to {vocab_size - 1}"):
        pack(np.array([0, index, 0]), vocab_size)


@pytest.mark.parametrize("vocab_size", [0, -3, 2**63 + 1])
def test_an_impossible_vocabulary_is_refused(vocab_size):
    with pytest.raises(ValueError, match=f"vocab_size: got {vocab_size}"):
        bits_per_index(vocab_size)


def test_only_what_pack_writes_is_read():
    packed = pack(np.array([4, 0, 2]), 5)  # 9 bits
    with pytest.raises(ValueError, match="got 1 bytes"):
        unpack(packed[:1], 3, 5)
    with pytest.raises(ValueError, match="got 3 bytes"):
        unpack(packed + b"\0", 3, 5)
    with pytest.raises(ValueError, match="not zero"):
        unpack(packed[:1] + bytes([packed[1] | 1]), 3, 5)
    with pytest.raises(ValueError, match="got 7, expected 0 to 4"):
        unpack(bytes([packed[0] | 0xE0]) + packed[1:], 3, 5)
