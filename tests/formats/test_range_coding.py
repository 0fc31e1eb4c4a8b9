"""Entropy-coded tokens: they come back, they cost what theory says, and damage is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.formats import TokenFile, TokenFileError, TokenImage
from smalti.formats.range_coding import decode_tokens, encode_tokens, join_streams, split_streams, stream_lengths

pytest.importorskip("constriction", reason="needs the extra smalti[codec]")

FINGERPRINT = "0f" * 32


def skewed(vocab_size: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a skewed distribution, and what that is."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(vocab_size, 0.2))
    return rng.choice(vocab_size, length, p=p), p


@given(
    st.integers(1, 5000),
    st.lists(st.integers(0, 200), max_size=4),
    st.booleans(),
    st.integers(0, 9),
)
def test_tokens_come_back(vocab_size: int, lengths: list[int], learned: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scales = [rng.integers(0, vocab_size, length) for length in lengths]
    tables = [rng.integers(0, 1000, vocab_size) for _ in lengths] if learned else None
    data = encode_tokens(scales, vocab_size, tables)
    for a, b in zip(scales, decode_tokens(data, lengths, vocab_size, tables), strict=True):
        assert np.array_equal(a, b)
        assert b.dtype == np.int64


def test_price_is_the_cross_entropy_of_the_tables() -> None:
    """An independent account in floats: −log2 of every token's share in its table, block by block."""
    tokens, p = skewed(300, 2000)
    learned = (p * 1e5).astype(np.int64)
    bits = 0.0
    counts = 1 + learned * 2**14 // learned.sum()
    for start in range(0, len(tokens), 64):
        block = tokens[start : start + 64]
        bits -= np.log2(counts[block] / counts.sum()).sum()
        np.add.at(counts, block, 32)
    measured = 8 * len(encode_tokens([tokens], 300, [learned]))
    assert measured == pytest.approx(bits, rel=2e-3, abs=64)


def test_learned_tables_beat_flat_ones_beat_packing() -> None:
    """On 4000 skewed tokens of 64: near their entropy, and less than log2 K."""
    tokens, p = skewed(64, 4000)
    entropy = -sum(q * math.log2(q) for q in p if q > 0) * len(tokens) / 8
    flat, learned = (len(encode_tokens([tokens], 64, tables)) for tables in (None, [(p * 1e6).astype(np.int64)]))
    assert entropy * 0.97 < learned < flat < 0.9 * 6 * len(tokens) / 8
    assert learned < 1.05 * entropy


def test_the_stream_is_the_same_everywhere() -> None:
    """Bytes computed once; other machines must give them, too, or they could not read each other's files."""
    tokens = (np.arange(200) ** 2 * 7 + 3) % 50
    assert encode_tokens([tokens, tokens[:10]], 50).hex() == PINNED


PINNED = (
    "90c87210e8dc11953ff8f02eea804ba196f8206db4e7718745225b634557d292ca7e9d831b0adc085fc0f863a601d23fd19a"
    "4ed663e1744a342daf78bdc2d247d54cbd789d324c218288209cf68482f18626a9ae05b240e98b060234e41b0e6a2fe91bd4"
    "ba0f70017b45707fec96b631afab33fe98bdd40a87a6edc4033b0bbb"
)


@given(
    st.lists(
        st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple),
        max_size=3,
    )
)
def test_streams_join_to_what_was_split(grids: list[tuple[tuple[int, ...], ...]]) -> None:
    rng = np.random.default_rng(0)
    images = [(g, rng.integers(0, 9, sum(math.prod(grid) for grid in g))) for g in grids]
    streams = split_streams(images)
    assert [len(stream) for stream in streams] == stream_lengths(grids)
    for (_, indices), again in zip(images, join_streams(streams, grids), strict=True):
        assert np.array_equal(indices, again)


def test_codes_of_one_position_have_streams_of_their_own() -> None:
    streams = split_streams([(((2, 2, 3),), np.tile([5, 6, 7], 4))])
    assert [stream.tolist() for stream in streams] == [[5] * 4, [6] * 4, [7] * 4]


# ---- in a token file ----------------------------------------------------------------------------------------------


def token_file(coding: str = "adaptive") -> tuple[TokenFile, list[np.ndarray]]:
    tokens, p = skewed(40, 42)
    images = [
        TokenImage("a.png", (8, 8), 3, ((1, 1), (4, 5)), tokens[:21]),
        TokenImage("b.png", (8, 8), 3, ((1, 1), (4, 5)), tokens[21:]),
    ]
    return TokenFile(FINGERPRINT, 40, tuple(images), coding), [(p * 1e4).astype(np.int64)] * 2  # type: ignore[arg-type]


@pytest.mark.parametrize("coding", ["packed", "adaptive", "learned"])
def test_files_come_back(coding: str) -> None:
    file, tables = token_file(coding)
    assert TokenFile.from_bytes(file.to_bytes(tables), FINGERPRINT, tables) == file


@given(st.data())
def test_harm_to_a_coded_file_is_refused(data: st.DataObject) -> None:
    file, tables = token_file("learned")
    whole = bytearray(file.to_bytes(tables))
    position = data.draw(st.integers(0, len(whole) - 1))
    harmed = bytes(whole[:position])
    if data.draw(st.booleans()):
        whole[position] ^= data.draw(st.integers(1, 255))
        harmed = bytes(whole)
    with pytest.raises(TokenFileError):
        TokenFile.from_bytes(harmed, FINGERPRINT, tables)


def test_other_models_and_missing_tables_are_named() -> None:
    file, tables = token_file("learned")
    data = file.to_bytes(tables)
    with pytest.raises(TokenFileError, match="made with another model"):
        TokenFile.from_bytes(data, "ab" * 32, tables)
    with pytest.raises(TokenFileError, match="the model's counts"):
        TokenFile.from_bytes(data, FINGERPRINT)
    with pytest.raises(ValueError, match="the model's counts"):
        file.to_bytes()
    with pytest.raises(TokenFileError, match="got 1, expected 2, one per stream"):
        TokenFile.from_bytes(data, FINGERPRINT, tables[:1])
    with pytest.raises(ValueError, match="expected 'packed' above"):
        TokenFile(FINGERPRINT, 2**21, (), "adaptive")
    beyond = TokenFile(FINGERPRINT, 40, (replace(file.images[0], indices=np.full(21, 40)),), "adaptive")
    with pytest.raises(ValueError, match="expected 0 to 39"):
        beyond.to_bytes()


def test_a_short_file_cannot_claim_many_tokens() -> None:
    grids = ((2**13, 2**12),)
    with pytest.raises(ValueError, match="33554432 indices, expected at most 16777216"):
        TokenFile(FINGERPRINT, 4, (TokenImage("a", (1, 1), 3, grids, np.zeros(2**25, np.int64)),), "adaptive")
