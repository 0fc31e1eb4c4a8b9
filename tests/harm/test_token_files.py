"""200 000 token files with altered fields behind a right length and checksum: read or refused, never slow or greedy."""

import random
import time
import tracemalloc
import zlib

import numpy as np

from smalti.formats import TokenFile, TokenFileError, TokenImage, token_file

TABLES = 2**26
"""Bytes for the coder's tables, which grow with the vocabulary that a file declares."""
UNPAID = 2**12
"""Stands in for MAX_UNPAID_INDICES, so that the bound shows and 200 000 files take minutes."""
FILES = 200_000
LENGTH = slice(10, 18)


def originals() -> list[bytes]:
    generator = np.random.default_rng(0)
    found = []
    for vocab_size in (1, 2, 300, 2**18):
        for coding in ("packed", "adaptive"):
            images = tuple(
                TokenImage(f"{n}.png", (16, 24), 3, grids, generator.integers(0, vocab_size, length))
                for n, (grids, length) in enumerate([(((2, 3),), 6), (((1, 1), (2, 2), (2, 3, 2)), 17)])
            )
            found.append(TokenFile("ab" * 32, vocab_size, images, coding).to_bytes())
    return found


def mutated(data: bytes, moment: random.Random) -> bytes:
    """One to four changes: a byte, a field of all ones or zeros, a part left out, doubled or moved."""
    changed = bytearray(data[:-4])
    for _ in range(moment.randint(1, 4)):
        place, size = moment.randrange(8, len(changed)), moment.choice((1, 2, 4, 8))
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
        if len(changed) < 40:
            break
    changed[8:10] = moment.choice((data[8:10], data[8:10], bytes(changed[8:10])))
    changed[LENGTH] = (len(changed) + 4).to_bytes(8, "little")
    return bytes(changed) + zlib.crc32(changed).to_bytes(4, "little")


def test_no_mutation_hangs_or_takes_more_memory_than_it_declares(monkeypatch):
    monkeypatch.setattr(token_file, "MAX_UNPAID_INDICES", UNPAID)
    moment, files = random.Random(0), originals()
    read, refused, slowest, greediest = 0, 0, 0.0, 0
    tracemalloc.start()
    for n in range(FILES):
        data = mutated(files[n % len(files)], moment)
        tracemalloc.reset_peak()
        before, begun = tracemalloc.get_traced_memory()[0], time.process_time()
        declared = 0
        try:
            found = TokenFile.from_bytes(data)
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
