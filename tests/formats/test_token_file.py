"""The token file: round trips, the layout byte by byte, and everything that must be refused."""

import struct
import tracemalloc
import zlib
from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smalti.formats import TokenFile, TokenFileError, TokenImage, read_token_file, write_token_file
from smalti.formats.token_file import MAX_UNPAID_INDICES

FINGERPRINT = bytes(range(32)).hex()
MAGIC = b"\x89SMLT\r\n\x1a"
UNTIMED = [HealthCheck.too_slow]
"""A busy machine is no failure."""

names = st.lists(
    st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/"), min_size=1, max_size=6).filter(
        lambda part: part not in (".", "..")
    ),
    min_size=1,
    max_size=3,
).map("/".join)
grids = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4).map(tuple)
vocab_sizes = st.one_of(st.integers(1, 5), st.integers(1, 5000), st.integers(1, 2**63))


@st.composite
def image_fields(draw, vocab_size):
    shapes = draw(grids)
    count = sum(prod(grid) for grid in shapes)
    indices = draw(st.lists(st.integers(0, vocab_size - 1), min_size=count, max_size=count))
    size = draw(st.tuples(st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1)))
    return draw(names), size, draw(st.integers(1, 65535)), shapes, np.array(indices, dtype=np.int64)


@st.composite
def file_fields(draw):
    """Plain values: building the classes here would draw random numbers in beartype's checks."""
    vocab_size = draw(vocab_sizes)
    images = draw(st.lists(image_fields(vocab_size), max_size=3))
    return draw(st.binary(min_size=32, max_size=32)).hex(), vocab_size, images


def built(fields):
    fingerprint, vocab_size, images = fields
    return TokenFile(fingerprint, vocab_size, tuple(TokenImage(*image) for image in images))


def example():
    multi = TokenImage("a/猫.png", (5, 7), 3, ((1, 1), (2, 2)), np.array([4, 0, 1, 2, 3]))
    line = TokenImage("b", (1, 1), 1, ((3,), ()), np.array([4, 4, 4, 1]))
    return TokenFile(FINGERPRINT, 5, (multi, line))


def sealed(data):
    """Bytes with the length and the checksum that they should have: what a forger would write."""
    data = data[:10] + struct.pack("<Q", len(data)) + data[18:-4]
    return data + struct.pack("<I", zlib.crc32(data))


# ---- round trips ----------------------------------------------------------------------------------------------------


@settings(suppress_health_check=UNTIMED)
@given(fields=file_fields())
def test_what_is_written_is_read(fields):
    token_file = built(fields)
    data = token_file.to_bytes()
    again = TokenFile.from_bytes(data)
    assert again == token_file
    assert again.to_bytes() == data
    for image, expected in zip(again.images, token_file.images, strict=True):
        assert image.indices.tolist() == expected.indices.tolist()
        assert image.indices.dtype == np.int64


def test_equality_looks_at_every_field():
    image = TokenImage("a", (2, 3), 3, ((2, 3),), np.arange(6))
    others = [
        TokenImage("b", (2, 3), 3, ((2, 3),), np.arange(6)),
        TokenImage("a", (3, 2), 3, ((2, 3),), np.arange(6)),
        TokenImage("a", (2, 3), 1, ((2, 3),), np.arange(6)),
        TokenImage("a", (2, 3), 3, ((3, 2),), np.arange(6)),
        TokenImage("a", (2, 3), 3, ((2, 3),), np.arange(6)[::-1]),
    ]
    assert image == TokenImage("a", (2, 3), 3, ((2, 3),), np.arange(6))
    assert all(image != other for other in others)


def test_the_layout_is_the_documented_one():
    """Written out by hand; if this fails, files written earlier can no longer be read: raise VERSION."""
    name = "a/猫.png".encode()
    first = struct.pack("<H", len(name)) + name + struct.pack("<IIHB", 5, 7, 3, 2)
    first += struct.pack("<BII", 2, 1, 1) + struct.pack("<BII", 2, 2, 2) + bytes([0b10000000, 0b10100110])
    second = struct.pack("<H", 1) + b"b" + struct.pack("<IIHB", 1, 1, 1, 2)
    second += struct.pack("<BI", 1, 3) + struct.pack("<B", 0) + bytes([0b10010010, 0b00010000])
    body = bytes(range(32)) + struct.pack("<QI", 5, 2) + first + second
    data = MAGIC + struct.pack("<HQ", 1, 18 + len(body) + 4) + body
    assert example().to_bytes() == data + struct.pack("<I", zlib.crc32(data))


def test_a_token_costs_its_bits_and_no_more():
    def size(count, vocab_size):
        image = TokenImage("a", (1, 1), 3, ((count,),), np.zeros(count, dtype=np.int64))
        return len(TokenFile(FINGERPRINT, vocab_size, (image,)).to_bytes())

    assert size(8001, 1) == size(1, 1)
    assert size(8001, 512) - size(1, 512) == 9000
    assert size(8001, 513) - size(1, 513) == 10000


# ---- damage ---------------------------------------------------------------------------------------------------------


@settings(suppress_health_check=UNTIMED)
@given(fields=file_fields(), data=st.data())
def test_every_truncation_is_refused(fields, data):
    whole = built(fields).to_bytes()
    kept = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(TokenFileError, match="truncated"):
        TokenFile.from_bytes(whole[:kept])


@settings(suppress_health_check=UNTIMED, max_examples=200)
@given(fields=file_fields(), data=st.data())
def test_every_altered_byte_is_refused(fields, data):
    whole = bytearray(built(fields).to_bytes())
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TokenFileError) as refusal:
        TokenFile.from_bytes(bytes(whole))
    assert "\n" not in str(refusal.value)


def test_every_position_and_every_bit_of_one_file():
    whole = example().to_bytes()
    said = set()
    for position in range(len(whole)):
        for bit in range(8):
            altered = bytearray(whole)
            altered[position] ^= 1 << bit
            with pytest.raises(TokenFileError) as refusal:
                TokenFile.from_bytes(bytes(altered))
            said.add((min(position, 18), str(refusal.value).split()[0]))
    assert {word for position, word in said if position < 8} == {"not"}
    assert {word for position, word in said if 8 <= position < 10} == {"unsupported", "altered:"}  # 1 to 3
    assert {word for position, word in said if 10 <= position < 18} <= {"truncated:", "altered:"}
    assert {word for position, word in said if position == 18} == {"altered:"}
    for kept in range(len(whole)):
        with pytest.raises(TokenFileError, match=rf"truncated: expected .*\d+ bytes, found {kept}$"):
            TokenFile.from_bytes(whole[:kept])


@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(TokenFileError):
        TokenFile.from_bytes(data)


@settings(suppress_health_check=UNTIMED, max_examples=300)
@given(fields=file_fields(), data=st.data())
def test_a_forged_checksum_leads_to_a_valid_file_or_a_refusal(fields, data):
    """No other exception, no large allocation: whatever is read could have been written."""
    whole = bytearray(built(fields).to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(18, len(whole) - 1))
        whole[position : position + 1] = data.draw(st.binary(max_size=3))
    forged = sealed(bytes(whole))
    try:
        again = TokenFile.from_bytes(forged)
    except TokenFileError:
        return
    assert again.to_bytes() == forged


@settings(suppress_health_check=UNTIMED)
@given(body=st.binary(max_size=120), vocab_size=st.integers(0, 2**64 - 1), count=st.integers(0, 2**32 - 1))
def test_random_images_behind_a_good_header(body, vocab_size, count):
    forged = sealed(MAGIC + struct.pack("<HQ32sQI", 1, 0, b"f" * 32, vocab_size, count) + body + b"crc!")
    try:
        again = TokenFile.from_bytes(forged)
    except TokenFileError:
        return
    assert again.to_bytes() == forged


def forged_image(vocab_size, grid, payload=b"", images=1, name=b"a", size=(1, 1), scales=1, version=1):
    image = struct.pack("<H", len(name)) + name + struct.pack("<IIHB", *size, 3, scales)
    image += struct.pack(f"<B{len(grid)}I", len(grid), *grid) + payload
    return sealed(MAGIC + struct.pack("<HQ32sQI", version, 0, b"f" * 32, vocab_size, images) + image * images + b"crc!")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (forged_image(1, (2**32 - 1,) * 255), "expected at most that many"),
        (forged_image(1, (2**13, 2**10), images=3), "expected at most that many"),
        (forged_image(2, (2**32 - 1,) * 255), "longer than the file"),
        (forged_image(2, (2**32 - 1, 2**20), b"12345678"), "longer than the file"),
        (forged_image(256, (2, 0)), "grids: side: got 0"),
        (forged_image(256, (0, 1, 2**32 - 1), version=2), "grids: side: got 0"),  # 2^32 codes a position, no index
        (forged_image(256, (1,), b"1", size=(0, 1)), "image_size: got 0"),
        (forged_image(256, (1,), b"1", name=b"../../etc/passwd"), "name"),
        (forged_image(256, (1,), b"1", name=b"/etc/passwd"), "name"),
        (forged_image(256, (1,), b"1", name=b"\x1b[2J"), "control characters"),
        (forged_image(256, (1,), b"1", name=b"\xff"), "utf-8"),
        (forged_image(256, (1,), b"1", name=b""), "name"),
        (forged_image(256, (1,), b"1x"), "1 bytes after the last image"),
        (forged_image(256, (1,), b"1", scales=0), "number of scales: got 0"),
        (forged_image(5, (2,), b"\xe0"), "indices: got 7"),
        (forged_image(5, (2,), b"\x01"), "not zero"),
        (forged_image(0, (1,), b"1"), "vocab_size: got 0"),
        (forged_image(2**64 - 1, (1,), b"1"), "vocab_size: got"),
    ],
)
def test_forged_fields_are_refused(data, reason):
    with pytest.raises(TokenFileError, match=reason) as refusal:
        TokenFile.from_bytes(data)
    assert str(refusal.value).startswith("malformed: ")
    assert len(str(refusal.value)) < 300


def test_indices_that_take_no_bytes_are_counted_before_they_are_made():
    forged = forged_image(1, (2**20, 3), images=1000)  # 24 MB of zeros each; the limit allows five
    tracemalloc.start()
    try:
        with pytest.raises(TokenFileError, match="expected at most that many"):
            TokenFile.from_bytes(forged)
        assert tracemalloc.get_traced_memory()[1] < 6 * 24 * 2**20
    finally:
        tracemalloc.stop()


# ---- files and models -----------------------------------------------------------------------------------------------


def test_files_and_their_refusals(tmp_path):
    path = tmp_path / "photo.smalti"
    write_token_file(path, example())
    assert read_token_file(path) == example()
    assert read_token_file(str(path), FINGERPRINT) == example()
    with pytest.raises(FileExistsError, match="already exists"):
        write_token_file(path, example())
    shorter = TokenFile(FINGERPRINT, 5, example().images[:1])
    write_token_file(path, shorter, force=True)
    assert read_token_file(path) == shorter
    assert list(tmp_path.iterdir()) == [path]

    whole = path.read_bytes()
    other = "ab" * 32
    cases = [
        (whole, other, rf"made with another model: file fingerprint {FINGERPRINT[:12]}…, this model abababababab…"),
        (b"\x89PNG\r\n\x1a\n" + whole[8:], FINGERPRINT, "not a smalti token file"),
        (whole[:8] + b"\x04\x00" + whole[10:], FINGERPRINT, "unsupported version: got 4"),
        (whole[:-1], FINGERPRINT, f"truncated: expected {len(whole)} bytes, found {len(whole) - 1}"),
        (b"", FINGERPRINT, "truncated: expected at least 24 bytes, found 0"),
        (whole + b"!", FINGERPRINT, f"altered: expected {len(whole)} bytes, found {len(whole) + 1}"),
        (whole[:30] + b"!" + whole[31:], FINGERPRINT, "altered: checksum differs"),
    ]
    for data, fingerprint, reason in cases:
        path.write_bytes(data)
        with pytest.raises(TokenFileError, match=reason) as refusal:
            read_token_file(path, fingerprint)
        assert str(refusal.value).startswith(f"{path}: ")
    with pytest.raises(FileNotFoundError):
        read_token_file(tmp_path / "missing")


def test_a_foreign_file_is_refused_by_its_first_bytes():
    """/dev/zero has no end."""
    with pytest.raises(TokenFileError, match="not a smalti token file"):
        read_token_file("/dev/zero")


# ---- what cannot be written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ""}, "name"),
        ({"name": "a//b"}, "name"),
        ({"name": "../a"}, "name"),
        ({"name": "a\n"}, "control characters"),
        ({"name": "\udcff"}, "control characters"),
        ({"name": "a" * 65536}, "65535"),
        ({"image_size": (0, 3)}, "image_size: got 0"),
        ({"image_size": (3, 2**32)}, "image_size: got 4294967296"),
        ({"channels": 0}, "channels: got 0"),
        ({"grids": ()}, "scales: got 0"),
        ({"grids": ((2, 3), (0, 2))}, "side: got 0"),
        ({"grids": ((2, 4),)}, r"indices: got int64 \(6,\)"),
    ],
)
def test_fields_that_do_not_fit_are_named(changes, reason):
    fields = {"name": "a", "image_size": (2, 3), "channels": 3, "grids": ((2, 3),), "indices": np.arange(6)} | changes
    with pytest.raises(ValueError, match=reason):
        TokenImage(**fields)


def test_token_files_that_do_not_fit_are_named():
    image = TokenImage("a", (2, 3), 3, ((2, 3),), np.arange(6))
    with pytest.raises(ValueError, match="fingerprint: got 'cafe'"):
        TokenFile("cafe", 6, (image,))
    with pytest.raises(ValueError, match="vocab_size: got 0"):
        TokenFile(FINGERPRINT, 0, (image,))
    with pytest.raises(ValueError, match="indices: got 5, expected 0 to 4"):
        TokenFile(FINGERPRINT, 5, (image,)).to_bytes()
    many = MAX_UNPAID_INDICES + 1
    image = TokenImage("a", (1, 1), 3, ((many,),), np.broadcast_to(np.int64(0), (many,)))
    with pytest.raises(ValueError, match="16777217 indices, expected at most 16777216"):
        TokenFile(FINGERPRINT, 1, (image,))
