"""200 000 token files with altered fields behind a right length and checksum: read or refused, never slow or greedy."""

import random
import time
import tracemalloc
import zlib

import numpy as np
from codec.small_codec import PYRAMID, TOKENIZER, K, blotches, small_codec

from smalti.formats import TokenFile, TokenFileError, TokenImage, token_file
from smalti.formats.byte_fields import varint

TABLES = 2**26
"""Bytes for the coder's tables, which grow with the vocabulary that a file declares."""
UNPAID = 2**12
"""Stands in for MAX_UNPAID_INDICES, so that the bound shows and 200 000 files take minutes."""
FILES = 200_000
VERSION_END, LENGTH_END = 10, 18


def originals(codec) -> list[bytes]:
    """Files of every coding."""
    generator = np.random.default_rng(0)
    found = []
    for vocab_size in (1, 2, 300, 2**18):
        for coding in ("packed", "adaptive"):
            images = tuple(
                TokenImage(f"{n}.png", (16, 24), 3, grids, generator.integers(0, vocab_size, length))
                for n, (grids, length) in enumerate([(((2, 3),), 6), (((1, 1), (2, 2), (2, 3, 2)), 17)])
            )
            found.append(TokenFile("ab" * 32, vocab_size, images, coding).to_bytes())
    for all_grids in ([PYRAMID], [PYRAMID, ((1, 2), (3, 2), (4, 5))]):
        images = tuple(TokenImage("a.png", (16, 24), 3, grids, blotches(grids, 0)) for grids in all_grids)
        found.append(TokenFile(TOKENIZER, K, images, "context").to_bytes(codec=codec))
    return found


def is_compact(data: bytes) -> bool:
    return data[VERSION_END - 2] == token_file.COMPACT


def body_of(data: bytes) -> bytes:
    """What stands between length and checksum."""
    length_end = VERSION_END + len(varint(len(data))) if is_compact(data) else LENGTH_END
    return data[length_end:-4]


def sealed(start: bytes, body: bytes) -> bytes:
    """A file with a right length and checksum."""
    if is_compact(start):
        whole = next(n for n in range(len(body), len(body) + 30) if VERSION_END + len(varint(n)) + len(body) + 4 == n)
        data = start + varint(whole) + body
    else:
        data = start + (LENGTH_END + len(body) + 4).to_bytes(8, "little") + body
    return data + zlib.crc32(data).to_bytes(4, "little")


def mutated(data: bytes, moment: random.Random) -> bytes:
    """One to four changes: a byte, a field of all ones or zeros, a part left out, doubled or moved."""
    changed = bytearray(body_of(data))
    for _ in range(moment.randint(1, 4)):
        place, size = moment.randrange(len(changed)), moment.choice((1, 2, 4, 8))
        kind = moment.randrange(5)
        if kind == 0:
            changed[place] ^= 1 << moment.randrange(8)
        elif kind == 1:
            changed[place : place + size] = moment.choice((b"\xff", b"\0", b"\x7f")) * size
        elif kind == 2:
            del changed[place : place + size]
        elif kind == 3:
            changed[place:place] = changed[place : place + size * 4]
        else:
            changed[place : place + size] = moment.randbytes(size)
        if len(changed) < 22:
            break
    version = moment.choice((data[8:VERSION_END],) * 8 + (b"\1\0", b"\2\0", b"\3\0", b"\4\0"))
    return sealed(data[:8] + version, bytes(changed))


def test_no_mutation_hangs_or_takes_more_memory_than_it_declares(monkeypatch):
    monkeypatch.setattr(token_file, "MAX_UNPAID_INDICES", UNPAID)
    codec = small_codec(PYRAMID, steps=5, images=5)
    moment, files = random.Random(0), originals(codec)
    assert all(sealed(data[:VERSION_END], body_of(data)) == data for data in files)
    read, refused, slowest, greediest = 0, 0, 0.0, 0
    tracemalloc.start()
    for n in range(FILES):
        data = mutated(files[n % len(files)], moment)
        tracemalloc.reset_peak()
        before, begun = tracemalloc.get_traced_memory()[0], time.process_time()
        declared = 0
        try:
            found = TokenFile.from_bytes(data, codec=codec)
            declared = sum(image.indices.nbytes for image in found.images)
            read += 1
        except TokenFileError:
            refused += 1
        taken = tracemalloc.get_traced_memory()[1] - before
        slowest = max(slowest, time.process_time() - begun)
        greediest = max(greediest, taken - 4 * declared)
        assert taken <= 4 * declared + 32 * UNPAID + TABLES, (n, taken, declared)
    tracemalloc.stop()
    assert read + refused == FILES
    assert min(read, refused) > FILES // 1000, (read, refused)
    assert slowest < 10
    print(f"{read} read, {refused} refused, slowest {slowest:.3f} s, {greediest / 2**20:.1f} MiB beside the indices")
