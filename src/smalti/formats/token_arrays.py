"""A token data set unpacked to two plain arrays, which training maps into memory.

SET/.arrays/tokens-KEY.npy     tokens (N, L), in the smallest type that holds the vocabulary
SET/.arrays/labels-KEY.npy     labels (N,), int32; -1 for a row without one
SET/.arrays/record-KEY.json    size, time and SHA-256 of both arrays, size and time of every shard they were made from

KEY is the beginning of the manifest's SHA-256, and the manifest holds the SHA-256 of every shard. For an object store
or a read-only folder, the arrays are in the user's cache (`CACHE`) instead.

What is checked where:

- `open_arrays` reads no bytes of arrays or shards: for a set of 10 GB that would take seconds at every start. It
  compares types, shapes, sizes and times of modification with the record. Arrays that do not fit it, or whose shards
  were modified since, are made again, and that compares the SHA-256 of every shard with the manifest.
- `damaged_arrays`, a part of `smalti tokens verify`, reads the arrays and compares their SHA-256: it also finds damage
  that keeps size and time, such as that of a failing disk.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Shaped

from smalti.formats.atomic import replace_file
from smalti.formats.sealed_json import open_sealed, seal
from smalti.formats.storage import Storage
from smalti.formats.token_set import MANIFEST, TokenManifest, read_rows
from smalti.formats.token_shards import index_dtype
from smalti.formats.weights import file_sha256

NO_LABEL = -1
FORMAT, VERSION = "smalti token arrays", 1
ARRAYS = ".arrays"
CACHE = "SMALTI_CACHE"
"""Environment variable: folder for arrays that cannot be written beside their shards; default: ~/.cache/smalti."""

Arrays = tuple[Shaped[np.ndarray, "n l"], Int32[np.ndarray, " n"]]


def open_arrays(storage: Storage, manifest: TokenManifest) -> Arrays:
    """Tokens (N, L) and labels (N,) of a set whose rows have one length, memory-mapped; made first where needed.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a shard was altered, or contradicts the manifest.
    """
    folders = _folders(storage)
    for files in (_Files(folder, storage) for folder in folders):
        if (arrays := files.fitting(storage, manifest)) is not None:
            return arrays
    files = _Files(next(filter(_writable, folders), folders[-1]), storage)
    files.make(storage, manifest)
    return files.opened()


def damaged_arrays(storage: Storage) -> list[str]:
    """The arrays of a set whose bytes are not those that were written, one line each. Reads every byte of them."""
    return [line for folder in _folders(storage) for line in _Files(folder, storage).damaged()]


class _Files:
    """The files of one set in one folder."""

    def __init__(self, folder: Path, storage: Storage):
        key = hashlib.sha256(storage.read(MANIFEST)).hexdigest()[:16]
        self.tokens, self.labels = folder / f"tokens-{key}.npy", folder / f"labels-{key}.npy"
        self.record = folder / f"record-{key}.json"

    def opened(self) -> Arrays:
        tokens, labels = (np.load(path, mmap_mode="r") for path in (self.tokens, self.labels))
        return tokens, labels

    def fitting(self, storage: Storage, manifest: TokenManifest) -> Arrays | None:
        """The arrays, or None if they are missing or do not fit; see the top of this file for what is compared."""
        try:
            record = self._read_record()
            if record["shards"] != _stamps(storage, manifest):
                return None
            if any(record["arrays"][path.name]["stamp"] != _stamp(path) for path in (self.tokens, self.labels)):
                return None
            tokens, labels = self.opened()
        except (FileNotFoundError, ValueError):
            return None
        form = (manifest.rows, _length(manifest)), index_dtype(manifest.vocab_size)
        fits = (tokens.shape, tokens.dtype) == form and (labels.shape, labels.dtype) == ((manifest.rows,), np.int32)
        return (tokens, labels) if fits else None

    def make(self, storage: Storage, manifest: TokenManifest) -> None:
        """Unpack shard by shard, so that only one is in memory at a time. The record is written last."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        shards = _stamps(storage, manifest)
        dtype, shape = index_dtype(manifest.vocab_size), (manifest.rows, _length(manifest))
        with replace_file(self.tokens, force=True) as tokens_path, replace_file(self.labels, force=True) as labels_path:
            tokens = np.lib.format.open_memmap(tokens_path, "w+", dtype, shape)
            labels = np.lib.format.open_memmap(labels_path, "w+", np.int32, shape[:1])
            rows = (row for shard in manifest.shards for row in read_rows(storage, manifest, shard))
            for n, row in enumerate(rows):
                tokens[n] = row.indices
                labels[n] = NO_LABEL if row.label is None else row.label
            tokens.flush()
            labels.flush()
        arrays = {
            path.name: {"stamp": _stamp(path), "sha256": file_sha256(path)} for path in (self.tokens, self.labels)
        }
        with replace_file(self.record, force=True) as temporary:
            temporary.write_bytes(seal(FORMAT, VERSION, {"shards": shards, "arrays": arrays}))

    def damaged(self) -> Iterator[str]:
        advice = "delete it, and the next training makes it again"
        try:
            arrays = self._read_record()["arrays"]
        except FileNotFoundError:  # arrays without a record are never used
            return
        except ValueError as error:
            yield f"{self.record}: damaged ({error}); {advice}"
            return
        for path in (self.tokens, self.labels):
            with suppress(FileNotFoundError):
                if file_sha256(path) != arrays[path.name]["sha256"]:
                    yield f"{path}: altered (SHA-256 differs); {advice}"

    def _read_record(self) -> dict[str, Any]:
        return open_sealed(self.record.read_bytes(), FORMAT, VERSION)[1]


def _folders(storage: Storage) -> list[Path]:
    """Where the arrays of a set may be, in the order of preference."""
    home = os.path.expanduser("~/.cache/smalti")  # noqa: PTH111 (a process without a home is no error yet)
    cache = Path(os.environ.get(CACHE, home))
    return [cache] if storage.local is None else [storage.local / ARRAYS, cache]


def _writable(folder: Path) -> bool:
    return os.access(folder if folder.is_dir() else folder.parent, os.W_OK)


def _length(manifest: TokenManifest) -> int:
    assert manifest.grids is not None, "the rows differ in length"
    return sum(prod(grid) for grid in manifest.grids)


def _stamp(path: Path) -> list[int]:
    """Size in bytes and time of modification in nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _stamps(storage: Storage, manifest: TokenManifest) -> dict[str, list[int | str]]:
    return {shard.file: storage.stamp(shard.file) for shard in manifest.shards}
