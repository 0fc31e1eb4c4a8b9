"""Tokens for training a prior: a token data set as memory-mapped arrays on disk.

Parquet must be unpacked for reading. Therefore the first opening writes two plain arrays beside the shards
(`smalti.formats.token_arrays`). Any number of processes then share the same memory pages.

The content of a batch depends only on the seed and on its number, as in `loader.py`: processes share batches without
communication, and training resumes in the middle of an epoch from the number of its next batch.

Legend: N rows, L tokens per row, B rows per batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from smalti.data.order import endless_batches
from smalti.formats.storage import Storage
from smalti.formats.token_arrays import open_arrays
from smalti.formats.token_set import TokenManifest, read_manifest


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
        self._tokens, self._labels = open_arrays(self.storage, self.manifest)

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
