"""Batches of images: an endless, shuffled, augmented stream for training, and one ordered pass for everything else.

What a batch contains depends on the seed and on its number alone. Every epoch is a permutation drawn from (seed,
epoch), every augmentation is drawn from (seed, epoch, index of the image), and the epochs are joined into one stream
that is cut into batches. So the number of worker processes changes nothing, and a run resumes exactly by the number of
its next batch. Training processes ("ranks") cut each batch of the same stream into equal blocks, so there is no
remainder: all have the same number of batches, and over an epoch each image is seen once. PyTorch's usual way is
different: a random state walks through the epoch, one in each worker, a sampler pads or drops images at the end of an
epoch, and none of this holds.
"""

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from multiprocessing import get_all_start_methods
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smalti.data.source import CachedSource, ImageSource, UnreadableImageError
from smalti.data.transforms import TransformConfig
from smalti.ops.pixels import to_float

__all__ = ["DEFAULT_CACHE_BYTES", "Batch", "ordered_batches", "training_batches"]

DEFAULT_CACHE_BYTES = 2**28
"""Decoded images that each process of a training stream keeps in memory."""

ORDER_STREAM, AUGMENTATION_STREAM = 0, 1
"""First word of the key under a seed, so that the two kinds of random numbers never coincide."""


@dataclass(frozen=True)
class Batch:
    """Images of one size, with what is known about them.

    Attributes:
        image: (B, C, H, W) in -1...1. B is the batch size, less the files that could not be read.
        keys: `ImageSource.key` of each image.
        labels: `ImageSource.label` of each image.
        unreadable: keys of the files skipped since the batch before; the reasons are in `ImageSource.unreadable`.
    """

    image: Float32[Tensor, "B C H W"]
    keys: tuple[str, ...]
    labels: tuple[int | None, ...]
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class _Position:
    """One image's place in a stream. In an ordered pass the epoch is None, and nothing is random."""

    epoch: int | None
    index: int


@dataclass
class _ReadBatch:
    """What a worker sends: uint8, a quarter of the bytes, as numpy arrays, which need no shared memory."""

    images: list[np.ndarray]
    indices: list[int]
    failures: dict[str, str]


def training_batches(
    source: ImageSource,
    transform: TransformConfig,
    batch_size: int,
    seed: int,
    start_batch: int = 0,
    workers: int = 0,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """The endless training stream from batch number `start_batch` on, or one process's part of it.

    With `world` processes, batch n of rank r is rows r * batch_size ... (r + 1) * batch_size - 1 of batch n that one
    process with world * batch_size would get: joined in the order of the ranks, the parts are that batch.

    A file that cannot be read makes its batch smaller. If that would leave nothing, the next readable image in the
    order of the source takes the place, so that there is a batch for every number in every process.

    Args:
        source: the images.
        transform: should have a size, unless all images of the source share one.
        batch_size: images in a batch of this process; may exceed the source, which then repeats within a batch.
        seed: at least 0; the same in all processes.
        start_batch: batches already seen; the stream goes on as if they had been drawn.
        workers: processes that decode; 0 does it in this one. They are started fresh, not forked, so a script that uses
            them needs `if __name__ == "__main__":`.
        cache_bytes: decoded images that each process keeps.
        rank: which of the training processes this is, 0...world - 1.
        world: number of training processes.

    Raises:
        ValueError: a bad argument, at once; no image is readable, or images of different sizes meet, while iterating.
    """
    _check_at_least(batch_size=(batch_size, 1), start_batch=(start_batch, 0), workers=(workers, 0), seed=(seed, 0))
    _check_at_least(cache_bytes=(cache_bytes, 0), world=(world, 1), rank=(rank, 0))
    if rank >= world:
        raise ValueError(f"rank: {rank}, must be below world = {world}")
    reader = _Reader(CachedSource(source, cache_bytes), transform, seed, refill=True)
    stream = _endless(len(source), batch_size * world, seed, start_batch)
    part = slice(rank * batch_size, (rank + 1) * batch_size)
    return _one_size(_read(reader, (positions[part] for positions in stream), workers), source)


def ordered_batches(
    source: ImageSource, transform: TransformConfig, batch_size: int, workers: int = 0
) -> Iterator[Batch]:
    """Every readable image once, in order, by `transform` with the center crop and without anything random.

    Without a size, a batch ends early where the next image has another height or width. No batch is empty: skipped
    files are reported in the next batch that has an image, those after the last such batch only in
    `source.unreadable`.

    Raises:
        ValueError: a bad argument, at once; no image of the source is readable, while iterating.
    """
    _check_at_least(batch_size=(batch_size, 1), workers=(workers, 0))
    positions = [_Position(None, index) for index in range(len(source))]
    batches = [tuple(positions[start : start + batch_size]) for start in range(0, len(positions), batch_size)]
    reader = _Reader(source, transform.centered(), 0, refill=False)
    return _runs_of_one_size(_read(reader, batches, workers), source)


class _Reader(Dataset[_ReadBatch]):
    """Reads a whole batch at a time: `reader[(position, position, ...)]`. This is what lives in the workers."""

    def __init__(self, source: ImageSource, transform: TransformConfig, seed: int, refill: bool):
        self.source = source
        self.transform = transform
        self.seed = seed
        self.refill = refill

    def __getitem__(self, positions: tuple[_Position, ...]) -> _ReadBatch:
        batch = _ReadBatch([], [], {})
        for position in positions:
            self._append(batch, position)
        if self.refill and not batch.images:
            count, last = len(self.source), positions[-1]
            for step in range(1, count):
                self._append(batch, replace(last, index=(last.index + step) % count))
                if batch.images:
                    break
        return batch

    def _append(self, batch: _ReadBatch, position: _Position) -> None:
        try:
            image = self.source.load(position.index)
        except UnreadableImageError as error:
            batch.failures[error.key] = error.reason
            return
        generator = None
        if position.epoch is not None:
            generator = _generator(self.seed, AUGMENTATION_STREAM, position.epoch, position.index)
        batch.images.append(self.transform.apply(image, generator).numpy())
        batch.indices.append(position.index)


def _generator(seed: int, *key: int) -> np.random.Generator:
    """An independent random stream for every (seed, key)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _endless(count: int, batch_size: int, seed: int, start_batch: int) -> Iterator[tuple[_Position, ...]]:
    """The positions of batch `start_batch`, of the one after it, and so on."""

    def stream() -> Iterator[_Position]:
        epoch, offset = divmod(start_batch * batch_size, count)
        while True:
            order = _generator(seed, ORDER_STREAM, epoch).permutation(count)
            for index in order[offset:]:
                yield _Position(epoch, int(index))
            epoch, offset = epoch + 1, 0

    positions = stream()
    while True:
        yield tuple(islice(positions, batch_size))


def _read(reader: _Reader, batches: Iterable[tuple[_Position, ...]], workers: int) -> Iterator[_ReadBatch]:
    """Read `batches` in their order, here or in worker processes."""
    return iter(
        DataLoader(
            reader,
            batch_size=None,  # one index of the reader is already a whole batch
            sampler=batches,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_ignore_interrupts if workers else None,
            multiprocessing_context=_start_method() if workers else None,
            generator=torch.Generator(),  # or it would draw from the caller's global random state
        )
    )


def _start_method() -> str:
    """Workers start from a clean process: forking one with PyTorch's threads can deadlock, and Python warns of it."""
    return "forkserver" if "forkserver" in get_all_start_methods() else "spawn"


def _as_it_is(batch: Any) -> Any:
    return batch


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the main one decides, and may still want its next batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _one_size(read: Iterator[_ReadBatch], source: ImageSource) -> Iterator[Batch]:
    for batch in read:
        source.unreadable.update(batch.failures)
        if not batch.images:
            raise ValueError(_nothing_readable(source))
        shapes = sorted({image.shape[1:] for image in batch.images})
        if len(shapes) > 1:
            raise ValueError(
                f"size: none, but images differ in height and width ({shapes[0]}, {shapes[-1]}); give a size"
            )
        yield _batch(source, batch.images, batch.indices, tuple(batch.failures))


def _runs_of_one_size(read: Iterator[_ReadBatch], source: ImageSource) -> Iterator[Batch]:
    skipped: list[str] = []
    nothing_yet = True
    for batch in read:
        source.unreadable.update(batch.failures)
        skipped.extend(batch.failures)
        for _, run in groupby(zip(batch.images, batch.indices, strict=True), key=lambda item: item[0].shape):
            images, indices = zip(*run, strict=True)
            yield _batch(source, images, indices, tuple(skipped))
            skipped.clear()
            nothing_yet = False
    if nothing_yet:
        raise ValueError(_nothing_readable(source))


def _batch(
    source: ImageSource, images: Sequence[np.ndarray], indices: Sequence[int], skipped: tuple[str, ...]
) -> Batch:
    return Batch(
        image=to_float(torch.from_numpy(np.stack(images))),
        keys=tuple(source.key(index) for index in indices),
        labels=tuple(source.label(index) for index in indices),
        unreadable=skipped,
    )


def _nothing_readable(source: ImageSource) -> str:
    return f"none of the {len(source)} images can be read: {source.unreadable_summary()}"


def _check_at_least(**arguments: tuple[int, int]) -> None:
    for name, (value, least) in arguments.items():
        if value < least:
            raise ValueError(f"{name}: {value}, must be at least {least}")
