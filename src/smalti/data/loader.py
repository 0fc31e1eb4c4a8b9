"""Batches of images: an endless, shuffled, augmented stream for training, and one ordered pass for everything else.

The content of a batch depends only on the seed and on its number. Every epoch is a permutation drawn from (seed,
epoch), every augmentation is drawn from (seed, epoch, index of the image), and the epochs form one stream that is cut
into batches. Therefore the number of workers has no effect on the content, and a run resumes exactly from the number of
its next batch. Training processes ("ranks") split each batch of the same stream into equal blocks. There is no
remainder: all have the same number of batches, and each image is seen once per epoch. PyTorch's usual loading
guarantees none of this: each worker has a random state that advances through the epoch, and a sampler pads or drops
images at its end.
"""

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from multiprocessing import get_all_start_methods, get_context
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smalti.checks import at_least, between
from smalti.data.encoded import Encoded, EncodedSource
from smalti.data.order import Position, augmentation_stream, endless_batches
from smalti.data.source import CachedSource, ImageSource, SourceVanishedError, UnreadableImageError
from smalti.data.transforms import TransformConfig
from smalti.ops.pixels import to_float

DEFAULT_CACHE_BYTES = 2**28
"""Bytes of decoded images that each process of a training stream keeps in memory."""

SAFE_PATH = "PYTHONSAFEPATH"
"""Python's environment variable that keeps the current directory out of a new process's import path."""


MOST_WORKERS = 1024
"""Upper limit of reading processes: more is a typing error and would overload the machine."""


Pixels = Literal["float", "uint8", "pinned"]
"""Form of training images: float in -1...1; uint8 as stored; or uint8 in pinned memory, for asynchronous GPU copies."""


GPU_WORKERS = 4
"""Default number of reading processes for a GPU."""


def check_workers(workers: int) -> None:
    """Refuse a number of reading processes below 0 or above `MOST_WORKERS`."""
    between(0, MOST_WORKERS, workers=workers)


def choose_workers(workers: int | Literal["auto"], device: torch.device) -> int:
    """Number of reading processes. "auto": `GPU_WORKERS` for a GPU, leaving one CPU core free; 0 for a CPU."""
    if workers != "auto":
        return workers
    if device.type != "cuda":
        return 0
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(GPU_WORKERS, cpus - 1)


@dataclass(frozen=True)
class Batch:
    """Images of one size, with keys, labels and captions.

    Attributes:
        image: (B, C, H, W) in -1...1, or uint8 if requested. B is the batch size minus the unreadable files.
        keys: `ImageSource.key` of each image.
        labels: `ImageSource.label` of each image.
        unreadable: keys of the files skipped since the previous batch; the reasons are in `ImageSource.unreadable`.
        captions: `ImageSource.caption` of each image.
    """

    image: Float32[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"]
    keys: tuple[str, ...]
    labels: tuple[int | None, ...]
    unreadable: tuple[str, ...] = ()
    captions: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Order:
    """Request to a worker: a position, and the bytes if only the main process can fetch them."""

    position: Position
    """Image and epoch."""
    encoded: Encoded | None = None
    """Encoded bytes; None if the worker can read them itself."""


class _ReadImage(NamedTuple):
    """One image with key, label and caption."""

    image: UInt8[np.ndarray, "c h w"]
    key: str
    label: int | None
    caption: str | None


@dataclass
class _Run:
    """Successive images of one size, as sent by a worker: one uint8 numpy array (a quarter of the bytes of float),
    which needs no shared memory. In pinned memory it is a tensor."""

    images: UInt8[np.ndarray | Tensor, "n c h w"]
    keys: tuple[str, ...]
    labels: tuple[int | None, ...]
    captions: tuple[str | None, ...]


@dataclass
class _ReadBatch:
    """The readable images of a batch, the reasons for the unreadable ones, and notes about labels."""

    runs: list[_Run] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    vanished: str = ""

    def pin_memory(self) -> "_ReadBatch":
        """The batch in pinned memory. `DataLoader` calls this, in a separate thread if there are workers."""
        runs = [replace(run, images=torch.as_tensor(run.images).pin_memory()) for run in self.runs]
        return replace(self, runs=runs)


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
    pixels: Pixels = "float",
) -> Iterator[Batch]:
    """The endless training stream from batch number `start_batch` on, or one process's part of it.

    With `world` processes, a single process with world * batch_size would get the concatenation of all ranks' batches:
    batch n of rank r is its rows r * batch_size ... (r + 1) * batch_size - 1.

    An unreadable file makes its batch smaller. If the batch would be empty, the next readable image in the order of the
    source is used, so that every process has a batch for every number.

    Args:
        source: the images.
        transform: needs a size, unless all images of the source have the same size.
        batch_size: images per batch of this process. May exceed the source, which then repeats within a batch.
        seed: at least 0; the same in all processes.
        start_batch: number of batches already seen; the stream continues after them.
        workers: processes that decode; 0: this process. They are not forked from this process, so a script that uses
            them needs `if __name__ == "__main__":`.
        cache_bytes: bytes of decoded images that each process keeps.
        rank: which of the training processes this is, 0...world - 1.
        world: number of training processes.
        pixels: "float": images in -1...1. "uint8": a quarter of the bytes to copy to a GPU, which converts them faster
            (`smalti.ops.pixels.to_float`). "pinned": uint8 in pinned memory; needs a GPU.

    Raises:
        ValueError: immediately for an invalid argument; while iterating, if no image is readable or sizes differ.
    """
    at_least(1, batch_size=batch_size, world=world)
    at_least(0, start_batch=start_batch, workers=workers, seed=seed, cache_bytes=cache_bytes, rank=rank)
    if rank >= world:
        raise ValueError(f"rank: got {rank}, expected less than world = {world}")
    reader = _Reader(CachedSource(source, cache_bytes), transform, seed, refill=True)
    stream = endless_batches(len(source), source.blocks, batch_size * world, seed, start_batch)
    part = slice(rank * batch_size, (rank + 1) * batch_size)
    read = read_batches(reader, (positions[part] for positions in stream), workers, pin=pixels == "pinned")
    return _one_size(read, source, floats=pixels == "float")


def ordered_batches(
    source: ImageSource,
    transform: TransformConfig,
    batch_size: int,
    workers: int = 0,
    indices: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Every readable image once, in order, transformed with the center crop and without randomness.

    `indices` selects images, for example for one of several processes or to continue an earlier pass. Sources with
    `blocks` are fastest with ascending indices.

    Without a size, a batch ends early if the next image has another size. No batch is empty: skipped files are reported
    in the next batch with an image; after the last batch they are only in `source.unreadable`.

    Raises:
        ValueError: immediately for an invalid argument; while iterating, if no image is readable (without `indices`).
    """
    at_least(1, batch_size=batch_size)
    at_least(0, workers=workers)
    chosen = range(len(source)) if indices is None else indices
    batches = (
        tuple(Position(None, index) for index in chosen[start : start + batch_size])
        for start in range(0, len(chosen), batch_size)
    )
    reader = _Reader(source, transform.centered(), 0, refill=False)
    return _runs_of_one_size(read_batches(reader, batches, workers), source, may_be_empty=indices is not None)


class _Reader(Dataset[_ReadBatch]):
    """Reads a whole batch at a time: `reader[(order, order, ...)]`. Runs in the workers."""

    def __init__(self, source: ImageSource, transform: TransformConfig, seed: int, refill: bool):
        self.source = source
        self.transform = transform
        self.seed = seed
        self.refill = refill

    def __getitem__(self, orders: tuple[Order, ...]) -> _ReadBatch:
        batch, images = _ReadBatch(), list[_ReadImage]()
        try:
            for order in orders:
                self._append(batch, images, order)
            count, last = len(self.source), orders[-1].position
            for step in range(1, count if self.refill else 0):
                if images:
                    break
                self._append(batch, images, Order(replace(last, index=(last.index + step) % count)))
        except SourceVanishedError as error:  # an exception would arrive as the traceback of a worker
            batch.vanished = str(error)
        batch.runs = [_run(list(run)) for _, run in groupby(images, key=lambda read: read.image.shape)]
        return batch

    def _append(self, batch: _ReadBatch, images: list[_ReadImage], order: Order) -> None:
        index = order.position.index
        try:
            picture = ordered_picture(self.source, order, self.transform.enough)
        except UnreadableImageError as error:
            batch.failures[error.key] = error.reason
            return
        pixels = self.transform.apply(picture, augmentation_stream(self.seed, order.position)).numpy()
        known = self.source.key(index), self.source.label(index), self.source.caption(index)
        if note := self.source.notes.get(known[0]):
            batch.notes[known[0]] = note
        images.append(_ReadImage(pixels, *known))


def _run(images: Sequence[_ReadImage]) -> _Run:
    pixels, keys, labels, captions = zip(*images, strict=True)
    return _Run(np.stack(pixels), keys, labels, captions)


def ordered_picture(source: ImageSource, order: Order, enough: int | None = None) -> Image.Image:
    """The image of an order; see `ImageSource.picture`."""
    if order.encoded is not None:
        _origin(source).receive(order.position.index, order.encoded)
    return source.picture(order.position.index, enough)


def _origin(source: ImageSource) -> EncodedSource:
    """The source that fetches, without the cache around it."""
    origin = source.source if isinstance(source, CachedSource) else source
    assert isinstance(origin, EncodedSource), "sources with blocks hold encoded images"
    return origin


def _orders(source: ImageSource, batches: Iterable[tuple[Position, ...]]) -> Iterator[tuple[Order, ...]]:
    """Orders for the workers. For sources with blocks, this process fetches each block once and adds the bytes."""
    for positions in batches:
        if source.blocks is None:
            yield tuple(Order(position) for position in positions)
        else:
            origin = _origin(source)
            yield tuple(Order(position, origin.fetch(position.index)) for position in positions)


def read_batches(
    reader: Any, batches: Iterable[tuple[Position, ...]], workers: int, pin: bool = False
) -> Iterator[Any]:
    """Read `batches` in order, in this process or in workers.

    Args:
        reader: `reader[(order, …)]` returns a batch; its `vanished` states why the source is gone. Has a `source`.
        batches: the positions of each batch.
        workers: processes that read; 0: this process.
        pin: call `pin_memory` of every batch.

    Raises:
        SourceVanishedError: the source is gone.
    """
    read = DataLoader(
        reader,
        batch_size=None,  # one index of the reader is already a whole batch
        sampler=_orders(reader.source, batches),  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pin,
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_interrupts if workers else None,
        multiprocessing_context=_context() if workers else None,
        generator=torch.Generator(),  # else it would draw from the caller's global random state
    )
    with _safe_path():
        batches_read = iter(read)
    for batch in batches_read:
        if batch.vanished:
            raise SourceVanishedError(batch.vanished)
        yield batch


def _context() -> Any:
    """Start method of workers: fork from a clean server process. Forking a process with PyTorch's threads can deadlock.

    The server imports this module once, so the workers start quickly.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _safe_path() -> Iterator[None]:
    """Processes started in this context do not import modules from the current directory.

    multiprocessing starts its processes by `python -c`, which searches the current directory first: a file `socket.py`
    beside downloaded pictures would run.
    """
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


def _as_it_is(batch: Any) -> Any:
    return batch


def _ignore_interrupts(worker: int) -> None:
    """Ignore Ctrl-C in workers: it reaches every process of the terminal, but the main process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _one_size(read: Iterator[_ReadBatch], source: ImageSource, floats: bool) -> Iterator[Batch]:
    for batch in read:
        source.unreadable.update(batch.failures)
        source.notes.update(batch.notes)
        if not batch.runs:
            raise ValueError(_nothing_readable(source))
        if len(batch.runs) > 1:
            shapes = sorted({run.images.shape[2:] for run in batch.runs})
            raise ValueError(
                f"size: got none for images that differ in size ({shapes[0]}, {shapes[-1]}), expected a size"
            )
        yield _batch(batch.runs[0], tuple(batch.failures), floats)


def _runs_of_one_size(read: Iterator[_ReadBatch], source: ImageSource, may_be_empty: bool) -> Iterator[Batch]:
    skipped: list[str] = []
    nothing_yet = True
    for batch in read:
        source.unreadable.update(batch.failures)
        source.notes.update(batch.notes)
        skipped.extend(batch.failures)
        for run in batch.runs:
            yield _batch(run, tuple(skipped))
            skipped.clear()
            nothing_yet = False
    if nothing_yet and not may_be_empty:
        raise ValueError(_nothing_readable(source))


def _batch(run: _Run, skipped: tuple[str, ...], floats: bool = True) -> Batch:
    image = torch.as_tensor(run.images)
    return Batch(to_float(image) if floats else image, run.keys, run.labels, skipped, run.captions)


def _nothing_readable(source: ImageSource) -> str:
    return f"none of the {len(source)} images can be read: {source.unreadable_summary()}"
