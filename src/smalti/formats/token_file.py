"""The token file: images as packed tokens, with the model's fingerprint and a checksum.

It holds a few images, which may differ in size. Layout, all numbers little-endian and unsigned:

    offset  bytes  header
    0       8      magic: 89 53 4D 4C 54 0D 0A 1A ("\\x89SMLT\\r\\n\\x1A"; like PNG's, it reveals text-mode transfers)
    8       2      version of the layout: 1, or 2 where the indices are entropy-coded
    10      8      length of the whole file in bytes
    18      32     fingerprint of the model: SHA-256, see `Tokenizer.fingerprint`
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

In version 2 the images are stored without their indices, followed by

    1              initial tables of the coder: 0 uniform, 1 the model's counts from training
    8, n           length of the coded indices in bytes, then the coded indices, see `smalti.formats.range_coding`:
                   one scale (and code number, if a position has several) after the other, each for all images in order

Version 3, for tokens coded by context, has a shorter header, see `compact.py`.

CRC-32 detects every change within 32 neighbouring bits, hence of any single byte. It misses other damage in one of
2 ** 32 cases. It is not a signature: anyone can make a file with a valid CRC-32. Therefore the reader checks every
field and bounds each allocation by the size of the file.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EISDIR
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from jaxtyping import Int64

from smalti.formats.atomic import replace_file
from smalti.formats.bits import bits_per_index, pack, packed_size, unpack
from smalti.formats.byte_fields import Reader, fixed
from smalti.formats.compact import FINGERPRINT_BYTES, read_compact, write_compact
from smalti.formats.range_coding import (
    MAX_VOCABULARY,
    check_indices,
    decode_tokens,
    encode_tokens,
    join_streams,
    split_streams,
    stream_lengths,
)
from smalti.formats.symbol_coder import MissingCoderError
from smalti.formats.token_codec import Grids, TokenCodec
from smalti.formats.token_image import TokenImage, check_grids, check_number

MAGIC = b"\x89SMLT\r\n\x1a"
PACKED, CODED, COMPACT = 1, 2, 3
"""Versions of the layout."""
VERSION_END = 10
"""End of magic and version."""
LENGTH_END = 18
"""Bytes that include the header's length field in every version. Shorter data does not contain its own length."""
CHECKSUM_SIZE = 4
HEADER_SIZE = 62
"""Bytes of the header in versions 1 and 2."""
SMALLEST = VERSION_END + 1 + FINGERPRINT_BYTES + 1 + CHECKSUM_SIZE
"""Bytes of the smallest file: no images, shortest header."""
MAX_UNPAID_INDICES = 1 << 24
"""Maximum number of indices where the file size does not bound it: entropy-coded, or K = 1."""

Coding = Literal["packed", "adaptive", "learned", "context"]
"""How indices are stored: packed at ceil(log2 K) bits each, or entropy-coded: with tables that start uniform, with
learned tables, or by a codec with context."""
Tables = Sequence[Int64[np.ndarray, " _"]]
"""Token counts from training, for each scale (and each code number of a position)."""


class TokenFileError(ValueError):
    """The bytes are not a complete, unaltered token file of this model. The message states the reason in one line."""


class OtherModelError(TokenFileError):
    """A valid token file that was made with another model or codec."""


@dataclass(frozen=True)
class TokenFile:
    """Content of a token file.

    Raises:
        ValueError: the file format cannot represent a field's value.
    """

    fingerprint: str
    """`Tokenizer.fingerprint` of the model that made the tokens: 64 hex digits."""
    vocab_size: int
    """K: every index is in [0, K)."""
    images: tuple[TokenImage, ...]
    """The images, in order."""
    coding: Coding = "packed"
    """How indices are stored."""

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.fingerprint):
            raise ValueError(f"fingerprint: got {self.fingerprint!r}, expected 64 lower-case hex digits")
        check_number("images: number", len(self.images), len(self.images), 0, 2**32 - 1)
        indices = sum(image.num_tokens for image in self.images)
        free = bits_per_index(self.vocab_size) == 0 or self.coding != "packed"
        if free and indices > MAX_UNPAID_INDICES:
            raise ValueError(f"images: got {indices} indices, expected at most {MAX_UNPAID_INDICES} with this coding")
        if self.coding != "packed" and self.vocab_size > MAX_VOCABULARY:
            raise ValueError(f"coding: got {self.coding!r}, expected 'packed' above {MAX_VOCABULARY} codes")

    def to_bytes(self, tables: Tables | None = None, codec: TokenCodec | None = None) -> bytes:
        """The bytes of the whole file.

        Args:
            tables: the model's counts from training. Required for `coding` "learned", ignored otherwise.
            codec: required for `coding` "context", ignored otherwise.

        Raises:
            ValueError: an index is outside [0, vocab_size), or the codec belongs to another model.
        """
        if self.coding == "context":
            data = MAGIC + fixed(COMPACT, 2) + self._compact(codec)
        else:
            if self.coding == "packed":
                body = b"".join(_head(image) + pack(image.indices, self.vocab_size) for image in self.images)
            else:
                body = b"".join(_head(image) for image in self.images) + self._coded(tables)
            version = PACKED if self.coding == "packed" else CODED
            start = MAGIC + fixed(version, 2) + fixed(HEADER_SIZE + len(body) + CHECKSUM_SIZE, 8)
            data = (
                start + bytes.fromhex(self.fingerprint) + fixed(self.vocab_size, 8) + fixed(len(self.images), 4) + body
            )
        return data + fixed(zlib.crc32(data), CHECKSUM_SIZE)

    def _compact(self, codec: TokenCodec | None) -> bytes:
        """The bytes between version and checksum of a context-coded file."""
        if codec is None:
            raise ValueError("codec: got None, expected a codec for coding 'context'")
        if (codec.tokenizer, codec.vocab_size) != (self.fingerprint, self.vocab_size):
            raise ValueError(f"codec: got one of model {codec.tokenizer[:12]}…, expected {self.fingerprint[:12]}…")
        for image in self.images:
            check_indices(image.indices, self.vocab_size)
        return write_compact(self.images, codec, VERSION_END + CHECKSUM_SIZE)

    def _coded(self, tables: Tables | None) -> bytes:
        """The indices of all images, entropy-coded."""
        streams = split_streams([(image.grids, image.indices) for image in self.images])
        for stream in streams:
            check_indices(stream, self.vocab_size)
        coded = encode_tokens(streams, self.vocab_size, _start(self.coding, tables))
        return fixed(self.coding == "learned", 1) + fixed(len(coded), 8) + coded

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        fingerprint: str | None = None,
        tables: Tables | None = None,
        codec: TokenCodec | None = None,
    ) -> "TokenFile":
        """Inverse of `to_bytes`.

        Args:
            data: the whole file.
            fingerprint: fingerprint of the model that will decode the tokens; None: accept any model.
            tables: the model's counts from training, for files coded with them.
            codec: the codec, for context-coded files.

        Raises:
            TokenFileError: not a token file, unsupported version, truncated, altered, or made with another model.
            MissingCoderError: the file is entropy-coded, and constriction is not installed.
        """
        _check_whole(data)
        version = _version(data)
        reader = Reader(data[:-CHECKSUM_SIZE], VERSION_END if version == COMPACT else LENGTH_END)
        try:
            if version == COMPACT:
                known = _known_codec(reader, codec)
                _check_model(known.tokenizer, fingerprint)
                images = read_compact(reader, known, MAX_UNPAID_INDICES)
                return cls(known.tokenizer, known.vocab_size, tuple(images), "context")
            made_by, vocab_size, count = reader.take(32).hex(), reader.number(8), reader.number(4)
            _check_model(made_by, fingerprint)
            coding: Coding = "packed"
            if version == PACKED:
                images = _read_packed(reader, count, vocab_size)
            else:
                coding, images = _read_coded(reader, count, vocab_size, tables)
            if reader.left:
                raise ValueError(f"{reader.left} bytes after the last image")
            return cls(made_by, vocab_size, tuple(images), coding)
        except (TokenFileError, MissingCoderError):
            raise
        except ValueError as error:  # the checksum is right, so the writer was at fault
            raise TokenFileError(f"malformed: {error}") from error


def write_token_file(
    path: str | Path,
    token_file: TokenFile,
    force: bool = False,
    tables: Tables | None = None,
    codec: TokenCodec | None = None,
) -> None:
    """Write a token file atomically. Tables and codec as in `TokenFile.to_bytes`.

    Raises:
        FileExistsError: `path` exists and `force` is off.
        FileNotFoundError: the folder of `path` does not exist.
        ValueError: an index is outside [0, vocab_size).
    """
    with replace_file(path, force) as temporary:
        temporary.write_bytes(token_file.to_bytes(tables, codec))


def read_token_file(
    path: str | Path,
    fingerprint: str | None = None,
    tables: Tables | None = None,
    codec: TokenCodec | None = None,
) -> TokenFile:
    """Read and check a token file.

    Args:
        path: the file.
        fingerprint: fingerprint of the model that will decode the tokens; None: accept any model.
        tables: the model's counts from training, for files coded with them.
        codec: the codec, for context-coded files, see `needs_codec`.

    Raises:
        TokenFileError: not a token file, unsupported version, truncated, altered, or made with another model.
        OSError: the file cannot be opened (FileNotFoundError if it does not exist).
    """
    with _opened(path) as file:
        try:
            head = file.read(LENGTH_END)
            _check_kind(head)  # before reading the rest: a foreign file may be huge
            return TokenFile.from_bytes(head + file.read(), fingerprint, tables, codec)
        except TokenFileError as error:
            raise type(error)(f"{path}: {error}") from error


def needs_codec(path: str | Path) -> bool:
    """Whether a file is a context-coded token file.

    Raises:
        OSError: the file cannot be opened.
    """
    with _opened(path) as file:
        return file.read(VERSION_END) == MAGIC + fixed(COMPACT, 2)


# ---- reading --------------------------------------------------------------------------------------------------------


def _opened(path: str | Path) -> BinaryIO:
    if Path(path).is_dir():
        raise IsADirectoryError(EISDIR, "is a folder, expected a token file", str(path))
    return Path(path).open("rb")


def _check_kind(data: bytes) -> None:
    """Refuse data that does not begin like a token file of a known version."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise TokenFileError("not a smalti token file")
    if len(data) < LENGTH_END:
        raise TokenFileError(f"truncated: expected at least {SMALLEST} bytes, found {len(data)}")
    if _version(data) not in (PACKED, CODED, COMPACT):
        raise TokenFileError(f"unsupported version: got {_version(data)}, expected {PACKED} to {COMPACT}")


def _check_whole(data: bytes) -> None:
    """Refuse data whose length or checksum differs from the one stored in it."""
    _check_kind(data)
    try:
        reader = Reader(data, VERSION_END)
        length = reader.varint() if _version(data) == COMPACT else reader.number(8)
    except ValueError as error:
        raise TokenFileError(f"altered: {error}") from error
    if len(data) < max(length, SMALLEST):
        raise TokenFileError(f"truncated: expected {max(length, SMALLEST)} bytes, found {len(data)}")
    if len(data) > length:
        raise TokenFileError(f"altered: expected {length} bytes, found {len(data)}")
    if zlib.crc32(data[:-CHECKSUM_SIZE]) != int.from_bytes(data[-CHECKSUM_SIZE:], "little"):
        raise TokenFileError("altered: checksum differs")


def _version(data: bytes) -> int:
    return int.from_bytes(data[len(MAGIC) : VERSION_END], "little")


def _known_codec(reader: Reader, codec: TokenCodec | None) -> TokenCodec:
    """Return the codec after checking that the file was coded with it."""
    reader.varint()  # the length, already checked
    coded_with = reader.take(FINGERPRINT_BYTES).hex()
    if codec is None:
        raise TokenFileError(f"coded with the codec {coded_with}…, which is needed to read the tokens")
    if not codec.fingerprint.startswith(coded_with):
        raise OtherModelError(
            f"coded with another codec: got {coded_with}… in the file, expected {codec.fingerprint[: len(coded_with)]}…"
        )
    return codec


def _check_model(made_by: str, fingerprint: str | None) -> None:
    if fingerprint not in (None, made_by):
        told = f"file fingerprint {made_by[:12]}…, this model {str(fingerprint)[:12]}…"
        raise OtherModelError(f"made with another model: {told}")


Head = tuple[str, tuple[int, int], int, Grids]


def _read_head(reader: Reader) -> Head:
    """The fields of an image before its indices: name, size, channels, grids."""
    name = reader.take(reader.number(2)).decode("utf-8")
    image_size = (reader.number(4), reader.number(4))
    channels = reader.number(2)
    grids = tuple(tuple(reader.numbers(reader.number(1))) for _ in range(reader.number(1)))
    check_grids(grids)
    return name, image_size, channels, grids


def _read_packed(reader: Reader, count: int, vocab_size: int) -> list[TokenImage]:
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


def _read_coded(reader: Reader, count: int, vocab_size: int, tables: Tables | None) -> tuple[Coding, list[TokenImage]]:
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
        raise ValueError(f"indices: got more than {MAX_UNPAID_INDICES}, expected at most that many with this coding")
    return count


def _start(coding: Coding, tables: Tables | None) -> Tables | None:
    """The coder's initial tables."""
    if coding == "learned" and tables is None:
        raise ValueError("tables: got None, expected the model's counts, which these tokens were coded with")
    return tables if coding == "learned" else None


# ---- writing --------------------------------------------------------------------------------------------------------


def _head(image: TokenImage) -> bytes:
    name = image.name.encode("utf-8")
    parts = [fixed(len(name), 2), name, *(fixed(side, 4) for side in image.image_size), fixed(image.channels, 2)]
    parts.append(fixed(len(image.grids), 1))
    for grid in image.grids:
        parts += [fixed(len(grid), 1), *(fixed(side, 4) for side in grid)]
    return b"".join(parts)
