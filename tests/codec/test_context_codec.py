"""Context coding: tokens come back, another decoder reads the same, every thread count writes the same, it pays."""

import hashlib
import os
import random
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
from codec.plain_decoder import decode as plainly_decoded
from codec.small_codec import PYRAMID, TOKENIZER, K, blotches, small_codec
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti import formats
from smalti.codec import ContextCodec, make_codec, read_codec, write_codec
from smalti.formats import TokenFile, TokenFileError, TokenImage, read_token_file, write_token_file
from smalti.formats.range_coding import encode_tokens

pytest.importorskip("constriction", reason="needs the extra smalti[codec]")


@pytest.fixture(scope="module")
def flat() -> ContextCodec:
    return small_codec(((9, 8),))


@pytest.fixture(scope="module")
def pyramid() -> ContextCodec:
    return small_codec(PYRAMID)


def token_file(*grids, seed: int = 0) -> TokenFile:
    images = [TokenImage(f"{i}.png", (3, 4), 3, grid, blotches(grid, seed + i)) for i, grid in enumerate(grids)]
    return TokenFile(TOKENIZER, K, tuple(images), "context")


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=2), st.integers(0, 99))
def test_tokens_come_back(flat, sides, seed):
    images = [((side,), np.random.default_rng(seed).integers(0, K, side[0] * side[1])) for side in sides]
    decoded = flat.decode(flat.encode(images), [grids for grids, _ in images])
    assert all(np.array_equal(a, b) for a, (_, b) in zip(decoded, images, strict=True))


def test_grids_of_any_rank_and_several_codes_a_position_come_back(pyramid):
    for grids in (((2, 3, 3),), ((4,), (2, 2, 2)), ((5, 6, 1), (2, 1, 1), (7, 2))):
        tokens = blotches(grids, 1)
        assert np.array_equal(pyramid.decode(pyramid.encode([(grids, tokens)]), [grids])[0], tokens)


@pytest.mark.parametrize("name", ["flat", "pyramid"])
def test_a_plain_decoder_reads_the_same(name, request, tmp_path):
    codec = request.getfixturevalue(name)
    grids = [codec.grids, ((5, 3),)] if name == "flat" else [codec.grids, ((1, 2), (3, 2), (4, 5))]
    written = token_file(*grids)
    write_codec(tmp_path / "codec", codec)
    write_token_file(tmp_path / "tokens", written, codec=codec)
    plain = plainly_decoded(str(tmp_path / "tokens"), str(tmp_path / "codec"))
    assert [(n, size, tuple(map(tuple, g)), indices) for n, size, g, indices in plain] == [
        (i.name, (*i.image_size, i.channels), i.grids, i.indices.tolist()) for i in written.images
    ]
    assert read_token_file(tmp_path / "tokens", TOKENIZER, codec=codec) == written


CODE_TWICE = """
import hashlib, sys
import numpy as np
from smalti.codec import read_codec
from smalti.formats import TokenFile, read_token_file
codec = read_codec(sys.argv[1])
read = read_token_file(sys.argv[2], codec=codec)
print(hashlib.sha256(read.to_bytes(codec=codec)).hexdigest())
"""


def test_one_thread_and_two_code_the_same(flat, tmp_path):
    write_codec(tmp_path / "codec", flat)
    write_token_file(tmp_path / "tokens", token_file(((40, 60),)), codec=flat)
    threads = "1" if os.environ.get("OMP_NUM_THREADS") != "1" else "2"  # another number than here
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", CODE_TWICE, str(tmp_path / "codec"), str(tmp_path / "tokens")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256((tmp_path / "tokens").read_bytes()).hexdigest()


def test_tokens_weigh_the_same_alone_and_among_others(flat):
    model = flat.model
    rng = np.random.default_rng(0)
    around = rng.integers(0, model.members.size + 1, (300, model.repeat_bias.size // 2))
    groups = rng.integers(0, len(model.members), 300)
    together = model.predict(around, 0)
    for batch in np.array_split(np.arange(300), 7):
        alone = model.predict(around[batch], 0)
        np.testing.assert_array_equal(alone.group_weights_NG, together.group_weights_NG[batch])
        np.testing.assert_array_equal(
            model.member_weights(alone, groups[batch], 0), model.member_weights(together, groups, 0)[batch]
        )


@pytest.mark.parametrize("name", ["flat", "pyramid"])
def test_it_costs_less_than_frequencies(name, request):
    codec = request.getfixturevalue(name)
    test = [blotches(codec.grids, 1000 + seed) for seed in range(20)]
    coded = len(codec.encode([(codec.grids, tokens) for tokens in test]))
    frequencies = len(encode_tokens([np.concatenate(test)], K))
    assert coded < 0.88 * frequencies


def test_training_is_repeatable():
    one, other = (small_codec(((4, 4),), steps=3) for _ in range(2))
    assert one.fingerprint == other.fingerprint


# ---- what must be refused --------------------------------------------------------------------------------------------


def test_another_codec_or_none_is_refused_in_one_line(flat, tmp_path):
    data = token_file(((9, 8),)).to_bytes(codec=flat)
    with pytest.raises(TokenFileError, match=f"^coded with the codec {flat.fingerprint[:16]}…, which is needed"):
        TokenFile.from_bytes(data)
    bias = flat.model.second_bias.copy()
    bias[0] += 1
    other = make_codec(replace(flat.model, second_bias=bias), TOKENIZER, flat.grids)
    with pytest.raises(TokenFileError, match=rf"^coded with another codec: .*{other.fingerprint[:16]}"):
        TokenFile.from_bytes(data, codec=other)
    with pytest.raises(TokenFileError, match=r"^made with another model"):
        TokenFile.from_bytes(data, "ab" * 32, codec=flat)
    stranger = make_codec(flat.model, "ab" * 32, flat.grids)
    with pytest.raises(ValueError, match=r"^codec: got one of model abab"):
        token_file(((9, 8),)).to_bytes(codec=stranger)
    with pytest.raises(ValueError, match="codec: got None"):
        token_file(((9, 8),)).to_bytes()


def test_every_truncation_and_every_bit_of_a_file_is_refused(flat):
    data = token_file(((4, 4),)).to_bytes(codec=flat)
    for length in range(len(data)):
        with pytest.raises(TokenFileError, match="truncated"):
            TokenFile.from_bytes(data[:length], codec=flat)
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TokenFileError):
            TokenFile.from_bytes(bytes(altered), codec=flat)


def test_altered_fields_behind_a_right_checksum_are_read_or_refused(flat, monkeypatch):
    monkeypatch.setattr(formats.token_file, "MAX_UNPAID_INDICES", 2**9)
    moment = random.Random(0)
    whole = token_file(((4, 4),), ((3, 5),)).to_bytes(codec=flat)
    header = 12 + 8  # magic, version, length, fingerprint: told by other tests
    read = 0
    for _ in range(400):
        data = bytearray(whole[:-4])
        place, size = moment.randrange(header, len(data) - 4), moment.choice((1, 2, 4))
        data[place : place + size] = moment.choice((b"\xff" * size, b"\0" * size, moment.randbytes(size)))
        try:
            TokenFile.from_bytes(bytes(data) + zlib.crc32(data).to_bytes(4, "little"), codec=flat)
            read += 1
        except TokenFileError as error:
            assert str(error).startswith("malformed: ")  # noqa: PT017
    assert 0 < read < 400


def test_another_number_of_maps_is_refused(flat):
    with pytest.raises(ValueError, match="grids: got 2 token maps per image, expected 1"):
        flat.encode([(((1, 1), (2, 2)), np.zeros(5, np.int64))])


def test_streams_that_do_not_decode_are_refused(flat):
    grids = ((9, 8),)
    data = flat.encode([(grids, blotches(grids, 0))])
    for wrong in (data + bytes(16), data[:-1]):
        with pytest.raises(ValueError, match="entropy-coded tokens"):
            flat.decode(wrong, [grids])


def test_a_saved_codec_is_the_same_and_a_damaged_one_is_refused(flat, tmp_path):
    path = tmp_path / "codec.safetensors"
    write_codec(path, flat)
    assert read_codec(path).fingerprint == flat.fingerprint
    assert read_codec(path).grids == flat.grids
    with pytest.raises(FileExistsError):
        write_codec(path, flat)
    data = path.read_bytes()
    path.write_bytes(data[:-3] + bytes([data[-3] ^ 4]) + data[-2:])
    with pytest.raises(ValueError, match="was altered"):
        read_codec(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_codec(path)
    with pytest.raises(FileNotFoundError, match="train a codec with smalti train-codec"):
        read_codec(tmp_path / "none")
