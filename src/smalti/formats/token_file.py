"""The token file: images as packed tokens, in a file that knows which model can read it and when it is damaged.

It is for a few images at a time, each of its own size. Byte by byte, all numbers little-endian and unsigned:

    offset  bytes  header
    0       8      magic: 89 53 4D 4C 54 0D 0A 1A ("\\x89SMLT\\r\\n\\x1A"; like PNG's, it shows text-mode transfers)
    8       2      version of the layout: 1, or 2 where the indices are entropy-coded
    10      8      length of the whole file in bytes
    18      32     fingerprint of the model: the SHA-256 that `Tokenizer.fingerprint` gives
    50      8      vocabulary size K, 1 to 2 ** 63
    58      4      number of images
    62             the images, one after the other
    end-4   4      CRC-32 (that of zlib and PNG) of every byte before it

    bytes          an image
    2              n, length of its name in bytes
    n              the name, UTF-8: a relative path with "/" between its parts
    4, 4           height, width in pixels
    2              channels
    1              number of scales, coarse to fine
    1, 4, 4, ...   for each scale: its rank, then as many sides
    ceil(L b / 8)  the L indices of all scales, each scale in raster order, packed at b = ceil(log2 K) bits by
                   `smalti.formats.bits`; nothing for K = 1, where one file holds at most 2 ** 24 indices

In version 2 the images stand without their indices, followed by

    1              where the coder's tables start: 0 flat, 1 at the counts that the model brings from its training
    8, n           length of the coded indices in bytes, and these, see `smalti.formats.range_coding`; scale by scale
                   (and code by code where several make one position), each of all images in order

CRC-32 finds every change of up to 32 neighbouring bits, hence of any single byte, for certain, and other damage but for
one case in 2 ** 32. It is no signature: whoever wants to can make a file with a valid one, so the reader also checks
all that it reads, and allocates nothing that the bytes at hand do not pay for.
"""

import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from smalti.formats.atomic import replace_file
from smalti.formats.bits import bits_per_index, pack, packed_size, unpack
from smalti.formats.range_coding import (
    MAX_VOCABULARY,
    MissingCoderError,
    check_indices,
    decode_tokens,
    encode_tokens,
    join_streams,
    split_streams,
    stream_lengths,
)

__all__ = [
    "Coding",
    "OtherModelError",
    "TokenFile",
    "TokenFileError",
    "TokenImage",
    "read_token_file",
    "write_token_file",
]

MAGIC = b"\x89SMLT\r\n\x1a"
PACKED, CODED = 1, 2
"""Versions of the layout."""
LENGTH_END = 18
"""Where the header's length field ends: shorter data does not even say how long it should be."""
CHECKSUM_SIZE = 4
SMALLEST = 62 + CHECKSUM_SIZE
"""Bytes of a file without images."""
MAX_UNPAID_INDICES = 1 << 24
"""Most indices in a file whose size does not bound their number: entropy-coded, or of K = 1."""

Grids = tuple[tuple[int, ...], ...]
Coding = Literal["packed", "adaptive", "learned"]
"""How indices are stored: at ceil(log2 K) bits each, or entropy-coded from flat or from learned tables."""
Tables = Sequence[Int64[np.ndarray, " _"]]
"""For each scale (and each code of a position) how often each token occurred in training."""


class TokenFileError(ValueError):
    """Bytes that are not a whole, unaltered token file, or one of another model. The message, one line, says which."""


class OtherModelError(TokenFileError):
    """A whole token file, but of another model than the one that shall read it."""


@dataclass(frozen=True, eq=False)
class TokenImage:
    """The tokens of one image.

    Raises:
        ValueError: a field that the file cannot hold, or that does not agree with the others.
    """

    name: str
    """What the image is called: a relative path such as "cats/tabby.png"; no "..", no control characters."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    channels: int
    """Channels of the image: 3 for RGB, 1 for grey."""
    grids: Grids
    """Shape of each scale, coarse to fine, of any rank: ((16, 16),), or ((1, 1), (2, 2), (4, 4))."""
    indices: Int64[np.ndarray, " l"]
    """int64 (L,): the indices of all scales, coarse to fine, each in raster order; L = the sum of the grids' sizes."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_number("image_size", min(self.image_size), max(self.image_size), 1, 2**32 - 1)
        _check_number("channels", self.channels, self.channels, 1, 2**16 - 1)
        _check_number("grids: number of scales", len(self.grids), len(self.grids), 1, 255)
        for grid in self.grids:
            _check_number("grids: rank", len(grid), len(grid), 0, 255)
            if grid:
                _check_number("grids: side", min(grid), max(grid), 1, 2**32 - 1)
        if self.indices.dtype != np.int64 or self.indices.shape != (self.num_tokens,):
            got = f"{self.indices.dtype} {self.indices.shape}"
            raise ValueError(f"indices: got {got}, the grids {self.grids} have int64 ({self.num_tokens},)")

    @property
    def num_tokens(self) -> int:
        """L, the indices of all scales together."""
        return sum(prod(grid) for grid in self.grids)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TokenImage)
            and (self.name, self.image_size, self.channels, self.grids)
            == (other.name, other.image_size, other.channels, other.grids)
            and np.array_equal(self.indices, other.indices)
        )


@dataclass(frozen=True)
class TokenFile:
    """What a token file holds.

    Raises:
        ValueError: a field that the file cannot hold.
    """

    fingerprint: str
    """`Tokenizer.fingerprint` of the model that made the tokens: 64 hex digits."""
    vocab_size: int
    """K: every index lies in [0, K)."""
    images: tuple[TokenImage, ...]
    """The images, in order."""
    coding: Coding = "packed"
    """How indices are stored."""

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.fingerprint):
            raise ValueError(f"fingerprint: got {self.fingerprint!r}, expected 64 lower-case hex digits")
        _check_number("images: number", len(self.images), len(self.images), 0, 2**32 - 1)
        indices = sum(image.num_tokens for image in self.images)
        free = bits_per_index(self.vocab_size) == 0 or self.coding != "packed"
        if free and indices > MAX_UNPAID_INDICES:
            raise ValueError(f"images: {indices} indices, at most {MAX_UNPAID_INDICES} fit such a file")
        if self.coding != "packed" and self.vocab_size > MAX_VOCABULARY:
            raise ValueError(f"coding: vocabularies of more than {MAX_VOCABULARY} can only be packed")

    def to_bytes(self, tables: Tables | None = None) -> bytes:
        """The whole file.

        Args:
            tables: what the model brings from its training; used, and needed, where `coding` is "learned".

        Raises:
            ValueError: an index outside [0, vocab_size).
        """
        if self.coding == "packed":
            body = b"".join(_head(image) + pack(image.indices, self.vocab_size) for image in self.images)
        else:
            body = b"".join(_head(image) for image in self.images) + self._coded(tables)
        version = PACKED if self.coding == "packed" else CODED
        start = MAGIC + _bytes(version, 2) + _bytes(SMALLEST + len(body), 8) + bytes.fromhex(self.fingerprint)
        data = start + _bytes(self.vocab_size, 8) + _bytes(len(self.images), 4) + body
        return data + _bytes(zlib.crc32(data), CHECKSUM_SIZE)

    def _coded(self, tables: Tables | None) -> bytes:
        """The indices of all images, entropy-coded."""
        streams = split_streams([(image.grids, image.indices) for image in self.images])
        for stream in streams:
            check_indices(stream, self.vocab_size)
        coded = encode_tokens(streams, self.vocab_size, _start(self.coding, tables))
        return _bytes(self.coding == "learned", 1) + _bytes(len(coded), 8) + coded

    @classmethod
    def from_bytes(cls, data: bytes, fingerprint: str | None = None, tables: Tables | None = None) -> "TokenFile":
        """Inverse of `to_bytes`.

        Args:
            data: the whole file.
            fingerprint: that of the model that shall read the tokens; None: of any.
            tables: that model's counts, for files that were coded with them.

        Raises:
            TokenFileError: not a token file, of an unsupported version, truncated, altered, or of another model.
            MissingCoderError: entropy-coded, and constriction is not installed.
        """
        _check_whole(data)
        reader = _Reader(data[:-CHECKSUM_SIZE], LENGTH_END)
        try:
            made_by, vocab_size, count = reader.take(32).hex(), reader.number(8), reader.number(4)
            _check_model(made_by, fingerprint)
            coding: Coding = "packed"
            if int.from_bytes(data[8:10], "little") == PACKED:
                images = _read_packed(reader, count, vocab_size)
            else:
                coding, images = _read_coded(reader, count, vocab_size, tables)
            if reader.left:
                raise ValueError(f"{reader.left} bytes after the last image")
            return cls(made_by, vocab_size, tuple(images), coding)
        except (TokenFileError, MissingCoderError):
            raise
        except ValueError as error:  # the checksum fits, so whoever wrote it wrote it wrong
            raise TokenFileError(f"malformed: {error}") from error


def write_token_file(
    path: str | Path, token_file: TokenFile, force: bool = False, tables: Tables | None = None
) -> None:
    """Write a token file; `path` is either complete afterwards or as it was before. Tables as in `TokenFile.to_bytes`.

    Raises:
        FileExistsError: `path` exists and `force` is off.
        FileNotFoundError: its folder does not exist.
        ValueError: an index outside [0, vocab_size).
    """
    with replace_file(path, force) as temporary:
        temporary.write_bytes(token_file.to_bytes(tables))


def read_token_file(path: str | Path, fingerprint: str | None = None, tables: Tables | None = None) -> TokenFile:
    """Read and check a token file.

    Args:
        path: the file.
        fingerprint: that of the model that shall read the tokens; None: of any.
        tables: that model's counts, for files that were coded with them.

    Raises:
        TokenFileError: not a token file, of an unsupported version, truncated, altered, or made with another model.
        OSError: it cannot be opened (FileNotFoundError if it does not exist).
    """
    with Path(path).open("rb") as file:
        try:
            head = file.read(LENGTH_END)
            _check_kind(head)  # before reading on: a foreign file may be huge
            return TokenFile.from_bytes(head + file.read(), fingerprint, tables)
        except TokenFileError as error:
            raise type(error)(f"{path}: {error}") from error


# ---- reading --------------------------------------------------------------------------------------------------------


class _Reader:
    """Takes bytes from the front, never more than there are."""

    def __init__(self, data: bytes, position: int):
        self._data = data
        self._position = position

    @property
    def left(self) -> int:
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError(f"a field at byte {self._position} is longer than the file")
        self._position += count
        return self._data[self._position - count : self._position]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def numbers(self, count: int) -> list[int]:
        return [self.number(4) for _ in range(count)]


def _check_kind(data: bytes) -> None:
    """Refuse what does not begin as a token file of this version."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise TokenFileError("not a smalti token file")
    if len(data) < LENGTH_END:
        raise TokenFileError(f"truncated: expected at least {SMALLEST} bytes, found {len(data)}")
    version = int.from_bytes(data[8:10], "little")
    if version not in (PACKED, CODED):
        raise TokenFileError(f"unsupported version {version} of the token file, this smalti reads {PACKED} and {CODED}")


def _check_whole(data: bytes) -> None:
    """Refuse what is not exactly as long as it says, or has another checksum."""
    _check_kind(data)
    length = int.from_bytes(data[10:18], "little")
    if len(data) < max(length, SMALLEST):
        raise TokenFileError(f"truncated: expected {max(length, SMALLEST)} bytes, found {len(data)}")
    if len(data) > length:
        raise TokenFileError(f"altered: expected {length} bytes, found {len(data)}")
    if zlib.crc32(data[:-CHECKSUM_SIZE]) != int.from_bytes(data[-CHECKSUM_SIZE:], "little"):
        raise TokenFileError("altered: checksum differs")


def _check_model(made_by: str, fingerprint: str | None) -> None:
    if fingerprint not in (None, made_by):
        told = f"file fingerprint {made_by[:12]}…, this model {str(fingerprint)[:12]}…"
        raise OtherModelError(f"made with another model: {told}")


Head = tuple[str, tuple[int, int], int, Grids]


def _read_head(reader: _Reader) -> Head:
    """What stands of an image before its indices: name, size, channels, grids."""
    name = reader.take(reader.number(2)).decode("utf-8")
    image_size = (reader.number(4), reader.number(4))
    channels = reader.number(2)
    return name, image_size, channels, tuple(tuple(reader.numbers(reader.number(1))) for _ in range(reader.number(1)))


def _read_packed(reader: _Reader, count: int, vocab_size: int) -> list[TokenImage]:
    free = MAX_UNPAID_INDICES if bits_per_index(vocab_size) == 0 else None
    images = []
    for _ in range(count):
        head = _read_head(reader)
        length = sum(prod(grid) for grid in head[3])
        if free is not None:
            free -= _at_most(length, free)
        indices = unpack(reader.take(packed_size(length, vocab_size)), length, vocab_size)
        images.append(TokenImage(*head, indices))
    return images


def _read_coded(reader: _Reader, count: int, vocab_size: int, tables: Tables | None) -> tuple[Coding, list[TokenImage]]:
    heads = [_read_head(reader) for _ in range(count)]
    _at_most(sum(prod(grid) for head in heads for grid in head[3]), MAX_UNPAID_INDICES)
    coding: Coding = "learned" if reader.number(1) else "adaptive"
    grids = [head[3] for head in heads]
    lengths = stream_lengths(grids)
    streams = decode_tokens(reader.take(reader.number(8)), lengths, vocab_size, _start(coding, tables))
    indices = join_streams(streams, grids)
    return coding, [TokenImage(*head, part) for head, part in zip(heads, indices, strict=True)]


def _at_most(count: int, free: int) -> int:
    if count > free:
        raise ValueError(f"more than {MAX_UNPAID_INDICES} indices that the size of the file does not bound")
    return count


def _start(coding: Coding, tables: Tables | None) -> Tables | None:
    """Where the coder's tables start."""
    if coding == "learned" and tables is None:
        raise ValueError("entropy-coded from the counts of a model: give the model's tables")
    return tables if coding == "learned" else None


# ---- writing --------------------------------------------------------------------------------------------------------


def _head(image: TokenImage) -> bytes:
    name = image.name.encode("utf-8")
    parts = [_bytes(len(name), 2), name, *(_bytes(side, 4) for side in image.image_size), _bytes(image.channels, 2)]
    parts.append(_bytes(len(image.grids), 1))
    for grid in image.grids:
        parts += [_bytes(len(grid), 1), *(_bytes(side, 4) for side in grid)]
    return b"".join(parts)


def _bytes(number: int, size: int) -> bytes:
    return number.to_bytes(size, "little")


# ---- what fits ------------------------------------------------------------------------------------------------------


def _check_number(name: str, low: int, high: int, least: int, most: int) -> None:
    for value in (low, high):
        if not least <= value <= most:
            raise ValueError(f"{name}: got {value}, allowed are {least} to {most}")


def _check_name(name: str) -> None:
    """A name ends up in a terminal and in a path, and may come from anywhere."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ValueError(f"name: got {name!r}, control characters are not allowed")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"name: got {name!r}, expected a relative path without empty parts, '.' and '..'")
    if len(name.encode("utf-8")) > 2**16 - 1:
        raise ValueError(f"name: got {len(name)} characters, at most 65535 bytes of UTF-8 fit")
