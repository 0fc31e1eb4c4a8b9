"""Version 3 of the token file, for context-coded tokens. The tokens take few bytes, so the header is short, too.

    offset  bytes  header
    0       8, 2   magic and version, as in the other versions (`token_file.py`)
    10      v      length of the whole file in bytes
            8      the first bytes of the codec's fingerprint, which also identifies tokenizer and vocabulary
            v      number of images
                   the images, one after the other
                   the indices of all images in order, coded by the codec
    end-4   4      CRC-32 of every byte before it

    bytes          an image
    v, n           length of its name in bytes, and the name
    v, v, v        height, width, channels
    v              number of scales; 0: the codec's default grids (`TokenCodec.grids`)
    v, v, v, ...   for each scale: its rank, then as many sides

v is a number of variable size (`byte_fields.varint`).
"""

from collections.abc import Sequence
from math import prod

from smalti.formats.byte_fields import Reader, varint
from smalti.formats.token_codec import Grids, TokenCodec
from smalti.formats.token_image import TokenImage, check_grids

FINGERPRINT_BYTES = 8
"""Two codecs share these by chance once in 2 ** 64 pairs."""


def write_compact(images: Sequence[TokenImage], codec: TokenCodec, around: int) -> bytes:
    """Bytes of the file from the length field up to the checksum.

    Args:
        images: the images to write.
        codec: codes their indices.
        around: number of bytes of the file before and after the returned part.
    """
    parts = [bytes.fromhex(codec.fingerprint)[:FINGERPRINT_BYTES], varint(len(images))]
    for image in images:
        name = image.name.encode("utf-8")
        parts += [varint(len(name)), name, *map(varint, (*image.image_size, image.channels))]
        grids = () if image.grids == codec.grids else image.grids
        parts.append(varint(len(grids)))
        for grid in grids:
            parts += map(varint, (len(grid), *grid))
    body = b"".join(parts) + codec.encode([(image.grids, image.indices) for image in images])
    size = around + len(body)
    length = next(n for n in range(1, 10) if len(varint(size + n)) == n)  # the length includes its own bytes
    return varint(size + length) + body


def read_compact(reader: Reader, codec: TokenCodec, most_indices: int) -> list[TokenImage]:
    """Read the images. The reader is positioned after the codec's fingerprint.

    Raises:
        ValueError: malformed data, or more than `most_indices` indices.
    """
    heads = [_read_head(reader, codec) for _ in range(reader.varint())]
    grids = [head[3] for head in heads]
    if sum(prod(grid) for image_grids in grids for grid in image_grids) > most_indices:
        raise ValueError(f"indices: got more than {most_indices}, expected at most that many in a context-coded file")
    decoded = codec.decode(reader.take(reader.left), grids)
    return [TokenImage(*head, indices) for head, indices in zip(heads, decoded, strict=True)]


def _read_head(reader: Reader, codec: TokenCodec) -> tuple[str, tuple[int, int], int, Grids]:
    """The fields of an image before its indices."""
    name = reader.take(reader.varint()).decode("utf-8")
    height, width, channels, scales = (reader.varint() for _ in range(4))
    grids = tuple(tuple(reader.varint() for _ in range(reader.varint())) for _ in range(scales)) or codec.grids
    check_grids(grids)
    return name, (height, width), channels, grids
