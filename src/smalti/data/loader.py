"""Batches of images: an endless, shuffled, augmented stream for training, and one ordered pass for everything else.

What a batch contains depends on the seed and on its number alone. Every epoch is a permutation drawn from (seed,
epoch), every augmentation is drawn from (seed, epoch, index of the image), and the epochs are joined into one stream
that is cut into batches. So the number of worker processes changes nothing, and a run resumes exactly by the number of
its next batch. Training processes ("ranks") cut each batch of the same stream into equal blocks, so there is no
remainder: all have the same number of batches, and over an epoch each image is seen once. PyTorch's usual way is
different: a random state walks through the epoch, one in each worker, a sampler pads or drops images at the end of an
epoch, and none of this holds.
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

from smalti.data.encoded import Encoded, EncodedSource
from smalti.data.order import Position, augmentation_stream, endless_batches
from smalti.data.source import CachedSource, ImageSource, SourceVanishedError, UnreadableImageError
from smalti.data.transforms import TransformConfig
from smalti.ops.pixels import to_float

__all__ = ["DEFAULT_CACHE_BYTES", "Batch", "ordered_batches", "training_batches"]

DEFAULT_CACHE_BYTES = 2**28
"""Decoded images that each process of a training stream keeps in memory."""

SAFE_PATH = "PYTHONSAFEPATH"
"""Environment variable of Python: a new process leaves the current directory out of its path."""


MOST_WORKERS = 1024
"""More processes that read are a slip of the hand, and would bring the machine down."""


Pixels = Literal["float", "uint8", "pinned"]
"""How training images arrive: in -1...1; as they are stored; or so in pinned memory, which a GPU fetches by itself."""


GPU_WORKERS = 4
"""Processes that read images for a GPU where nobody says how many."""


def check_workers(workers: int) -> None:
    """Refuse a number of processes that read images, below 0 or beyond `MOST_WORKERS`."""
    if not 0 <= workers <= MOST_WORKERS:
        raise ValueError(f"workers: got {workers}, expected 0 to {MOST_WORKERS}")


def choose_workers(workers: int | Literal["auto"], device: torch.device) -> int:
    """How many processes read images; "auto": for a GPU `GPU_WORKERS`, but one CPU stays free; for a CPU none."""
    if workers != "auto":
        return workers
    if device.type != "cuda":
        return 0
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(GPU_WORKERS, cpus - 1)


@dataclass(frozen=True)
class Batch:
    """Images of one size, with what is known about them.

    Attributes:
        image: (B, C, H, W) in -1...1, or uint8 where it was asked for. B is the batch size, less the files that could
            not be read.
        keys: `ImageSource.key` of each image.
        labels: `ImageSource.label` of each image.
        unreadable: keys of the files skipped since the batch before; the reasons are in `ImageSource.unreadable`.
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
    """What a worker is told to read next: a position, and the bytes where only the main process can fetch them."""

    position: Position
    """Which image, in which epoch."""
    encoded: Encoded | None = None
    """Its bytes; None where a worker can read them itself."""


class _ReadImage(NamedTuple):
    """One image, and what is known about it."""

    image: UInt8[np.ndarray, "c h w"]
    key: str
    label: int | None
    caption: str | None


@dataclass
class _Run:
    """Successive images of one size as a worker sends them: uint8, a quarter of the bytes, as one numpy array, which
    arrives in one piece and needs no shared memory. Pinned, they are a tensor."""

    images: UInt8[np.ndarray | Tensor, "n c h w"]
    keys: tuple[str, ...]
    labels: tuple[int | None, ...]
    captions: tuple[str | None, ...]


@dataclass
class _ReadBatch:
    """The images of a batch that could be read, why the others could not, and what was wrong with labels."""

    runs: list[_Run] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    vanished: str = ""

    def pin_memory(self) -> "_ReadBatch":
        """The same in pinned memory; `DataLoader` calls this, in a thread of its own where there are workers."""
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
        pixels: "float": images in -1...1. "uint8": a quarter of the bytes on the way to a GPU, which turns them into
            floats sooner than this process would (`smalti.ops.pixels.to_float`). "pinned": uint8 too; needs a GPU.

    Raises:
        ValueError: a bad argument, at once; no image is readable, or images of different sizes meet, while iterating.
    """
    _check_at_least(batch_size=(batch_size, 1), start_batch=(start_batch, 0), workers=(workers, 0), seed=(seed, 0))
    _check_at_least(cache_bytes=(cache_bytes, 0), world=(world, 1), rank=(rank, 0))
    if rank >= world:
        raise ValueError(f"rank: {rank}, must be below world = {world}")
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
    """Every readable image once, in order, by `transform` with the center crop and without anything random.

    `indices` picks the images, as for one of many processes or for going on where another pass ended; sources with
    `blocks` read fastest where they ascend.

    Without a size, a batch ends early where the next image has another height or width. No batch is empty: skipped
    files are reported in the next batch that has an image, those after the last such batch only in
    `source.unreadable`.

    Raises:
        ValueError: a bad argument, at once; without `indices` also if no image is readable, while iterating.
    """
    _check_at_least(batch_size=(batch_size, 1), workers=(workers, 0))
    chosen = range(len(source)) if indices is None else indices
    batches = (
        tuple(Position(None, index) for index in chosen[start : start + batch_size])
        for start in range(0, len(chosen), batch_size)
    )
    reader = _Reader(source, transform.centered(), 0, refill=False)
    return _runs_of_one_size(read_batches(reader, batches, workers), source, may_be_empty=indices is not None)


class _Reader(Dataset[_ReadBatch]):
    """Reads a whole batch at a time: `reader[(order, order, ...)]`. This is what lives in the workers."""

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
    """The image that an order asks for; see `ImageSource.picture`."""
    if order.encoded is not None:
        _origin(source).receive(order.position.index, order.encoded)
    return source.picture(order.position.index, enough)


def _origin(source: ImageSource) -> EncodedSource:
    """The source that fetches, below a cache."""
    origin = source.source if isinstance(source, CachedSource) else source
    assert isinstance(origin, EncodedSource), "sources with blocks hold encoded images"
    return origin


def _orders(source: ImageSource, batches: Iterable[tuple[Position, ...]]) -> Iterator[tuple[Order, ...]]:
    """With the bytes where images lie in blocks: there this process fetches each block once, for all workers."""
    for positions in batches:
        if source.blocks is None:
            yield tuple(Order(position) for position in positions)
        else:
            origin = _origin(source)
            yield tuple(Order(position, origin.fetch(position.index)) for position in positions)


def read_batches(
    reader: Any, batches: Iterable[tuple[Position, ...]], workers: int, pin: bool = False
) -> Iterator[Any]:
    """Read `batches` in their order, here or in worker processes.

    Args:
        reader: `reader[(order, …)]` is a batch, whose `vanished` says why nothing can be read; it has a `source`.
        batches: the positions of each batch.
        workers: processes that read; 0: this one.
        pin: call `pin_memory` of every batch.

    Raises:
        SourceVanishedError: a batch says so.
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
        generator=torch.Generator(),  # or it would draw from the caller's global random state
    )
    with _safe_path():
        batches_read = iter(read)
    for batch in batches_read:
        if batch.vanished:
            raise SourceVanishedError(batch.vanished)
        yield batch


def _context() -> Any:
    """Workers start from a clean process: forking one with PyTorch's threads can deadlock, and Python warns of it.

    That process imports this module once, so that the workers, forked from it, start in no time.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _safe_path() -> Iterator[None]:
    """Processes that are started in here do not import what lies in the current directory.

    multiprocessing starts its own ones by `python -c`, where the current directory is the first to be searched: a file
    `socket.py` beside downloaded pictures would run.
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
    """Ctrl-C reaches every process of the terminal; the main one decides, and may still want its next batch."""
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
                f"size: none, but images differ in height and width ({shapes[0]}, {shapes[-1]}); give a size"
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


def _check_at_least(**arguments: tuple[int, int]) -> None:
    for name, (value, least) in arguments.items():
        if value < least:
            raise ValueError(f"{name}: {value}, must be at least {least}")
