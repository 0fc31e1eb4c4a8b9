"""Tokens for training a prior: a token data set as memory-mapped arrays on disk.

Parquet must be unpacked for reading. Therefore the first opening writes two plain arrays beside the shards
(`.arrays/`), named by the manifest's checksum. Any number of processes then share the same memory pages. For an object
store or a read-only folder, the arrays are in the user's cache instead.

The content of a batch depends only on the seed and on its number, as in `loader.py`: processes share batches without
communication, and training resumes in the middle of an epoch from the number of its next batch.

Legend: N rows, L tokens per row, B rows per batch.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from smalti.data.order import endless_batches
from smalti.formats.atomic import replace_file
from smalti.formats.storage import Storage
from smalti.formats.token_set import MANIFEST, TokenManifest, read_manifest
from smalti.formats.token_shards import index_dtype, read_shard

NO_LABEL = -1
ARRAYS = ".arrays"
CACHE = "SMALTI_CACHE"
"""Environment variable: folder for arrays that cannot be written beside their shards; default: ~/.cache/smalti."""


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of several images."""

    tokens: Int64[Tensor, "b l"]
    """All scales, coarse to fine, raster order."""
    labels: Int64[Tensor, " b"]
    """Classes; -1 for an image without one."""

    def __len__(self) -> int:
        return len(self.labels)


class TokenDataset(Dataset[tuple[Tensor, int]]):
    """Rows of a token data set: `dataset[i]` is (tokens (L,), label), label -1 where there is none.

    >>> dataset = TokenDataset("tokens")  # doctest: +SKIP
    >>> batch = next(dataset.batches(batch_size=64, seed=0))  # doctest: +SKIP
    """

    manifest: TokenManifest
    """Manifest of the set."""

    def __init__(self, folder: str | Path):
        """Open a set.

        Args:
            folder: path or URL of a set that `smalti tokenize` made.

        Raises:
            FileNotFoundError: there is no complete set.
            ValueError: the set is damaged, or its images differ in size, so rows differ in length.
        """
        self.storage = Storage(folder)
        self.manifest = read_manifest(self.storage)
        if self.manifest.grids is None:
            raise ValueError(f"{folder}: images differ in size; tokenize them at one size to train a prior on them")
        if self.manifest.rows == 0:
            raise ValueError(f"{folder}: the token data set is empty")
        self._tokens, self._labels = self._arrays()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = range(len(self))[index]
        return torch.from_numpy(self._tokens[row].astype(np.int64)), int(self._labels[row])

    @property
    def num_tokens(self) -> int:
        """L."""
        return int(self._tokens.shape[1])

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 where no row has a label."""
        return max(len(self.manifest.class_names), int(self._labels.max()) + 1)

    def batch(self, rows: Sequence[int] | Int64[np.ndarray, " n"]) -> TokenBatch:
        """The rows of these numbers, in this order."""
        index = np.asarray(rows)
        tokens = torch.from_numpy(self._tokens[index].astype(np.int64))
        return TokenBatch(tokens, torch.from_numpy(self._labels[index].astype(np.int64)))

    def batches(
        self,
        batch_size: int,
        seed: int,
        start_batch: int = 0,
        rank: int = 0,
        world: int = 1,
        *,
        rows: Int64[np.ndarray, " n"] | None = None,
    ) -> Iterator[TokenBatch]:
        """The endless shuffled stream from batch number `start_batch` on: every epoch holds each row once.

        Args:
            batch_size: rows per process.
            seed: determines the order, which differs in every epoch.
            start_batch: number of batches already seen.
            rank: rank of this process. It gets its part of each joint batch of `world` · `batch_size` rows.
            world: number of processes.
            rows: row numbers to use; None: all.
        """
        rows = np.arange(len(self)) if rows is None else rows
        for positions in endless_batches(len(rows), None, batch_size * world, seed, start_batch):
            part = positions[rank * batch_size : (rank + 1) * batch_size]
            yield self.batch(rows[[position.index for position in part]])

    def require(self, *, fingerprint: str, vocab_size: int, grids: Sequence[Sequence[int]]) -> None:
        """Refuse a tokenizer or prior that does not match these tokens.

        Raises:
            ValueError: fingerprint, vocabulary or scales differ.
        """
        own, name = self.manifest, self.storage
        if fingerprint != own.fingerprint:
            raise ValueError(f"{name}: got tokens of tokenizer {own.fingerprint[:12]}…, expected {fingerprint[:12]}…")
        if vocab_size != own.vocab_size:
            raise ValueError(f"{name}: got vocab_size {own.vocab_size}, expected {vocab_size}")
        if [list(grid) for grid in grids] != own.grids:
            raise ValueError(f"{name}: got scales {own.grids}, expected {[list(grid) for grid in grids]}")

    # ---- arrays on the disk -------------------------------------------------------------------------------------

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (N, L) and labels (N,), memory-mapped. Missing arrays are written first."""
        key = hashlib.sha256(self.storage.read(MANIFEST)).hexdigest()[:16]
        folder = self._writable_folder()
        paths = folder / f"tokens-{key}.npy", folder / f"labels-{key}.npy"
        if not all(path.exists() for path in paths):
            self._unpack(*paths)
        tokens, labels = (np.load(path, mmap_mode="r") for path in paths)
        return tokens, labels

    def _writable_folder(self) -> Path:
        beside = None if self.storage.local is None else self.storage.local / ARRAYS
        if beside is not None and (beside.is_dir() or os.access(beside.parent, os.W_OK)):
            beside.mkdir(exist_ok=True)
            return beside
        cache = Path(os.environ.get(CACHE, Path.home() / ".cache" / "smalti"))
        cache.mkdir(parents=True, exist_ok=True)
        return cache

    def _unpack(self, tokens_path: Path, labels_path: Path) -> None:
        """Unpack shard by shard, so that only one is in memory at a time."""
        rows, grids = self.manifest.rows, self.manifest.grids
        assert grids is not None
        length = sum(int(np.prod(grid)) for grid in grids)
        dtype = index_dtype(self.manifest.vocab_size)
        with replace_file(tokens_path, force=True) as temporary_t, replace_file(labels_path, force=True) as temporary_l:
            tokens = np.lib.format.open_memmap(temporary_t, "w+", dtype, (rows, length))
            labels = np.lib.format.open_memmap(temporary_l, "w+", np.int32, (rows,))
            done = 0
            for shard in self.manifest.shards:
                data = self.storage.read(shard.file)
                if hashlib.sha256(data).hexdigest() != shard.sha256:
                    raise ValueError(f"{self.storage}/{shard.file}: altered (SHA-256 differs)")
                for row in read_shard(data):
                    if len(row.indices) != length:
                        raise ValueError(f"{self.storage}/{shard.file}: {row.key} has {len(row.indices)} tokens")
                    tokens[done] = row.indices
                    labels[done] = NO_LABEL if row.label is None else row.label
                    done += 1
            if done != rows:
                raise ValueError(f"{self.storage}: got {done} rows, expected {rows} by the manifest")
            tokens.flush()
            labels.flush()
