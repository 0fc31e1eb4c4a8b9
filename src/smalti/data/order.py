"""Order of the images: the permutation of an epoch, and the endless stream of epochs cut into batches.

The order of epoch e is drawn from (seed, e) only, so a single number stores the position in the stream. If images are
stored in blocks (`Blocks`), a shuffled epoch takes the blocks in random order, joins them until they hold
`SHUFFLE_WINDOW` images, and shuffles within. This resembles WebDataset's shuffle buffer, but can start at any position.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Int64

from smalti.data.source import Blocks

SHUFFLE_WINDOW = 1024
"""Minimum number of images that are shuffled together if they are stored in blocks."""

ORDER_STREAM, AUGMENTATION_STREAM = 0, 1
"""First word of the key under a seed, so that the two kinds of random numbers never coincide."""


@dataclass(frozen=True)
class Position:
    """Position of one image in a stream.

    Attributes:
        epoch: number of the epoch; None in an ordered pass, where nothing is random.
        index: index of the image in the source.
    """

    epoch: int | None
    index: int


def endless_batches(
    count: int, blocks: Blocks | None, batch_size: int, seed: int, start_batch: int
) -> Iterator[tuple[Position, ...]]:
    """The positions of each batch from `start_batch` on, for a source of `count` images."""

    def stream() -> Iterator[Position]:
        epoch, offset = divmod(start_batch * batch_size, count)
        while True:
            for index in epoch_order(count, blocks, seed, epoch)[offset:]:
                yield Position(epoch, int(index))
            epoch, offset = epoch + 1, 0

    positions = stream()
    while True:
        yield tuple(islice(positions, batch_size))


def epoch_order(count: int, blocks: Blocks | None, seed: int, epoch: int) -> Int64[np.ndarray, "count"]:
    """A permutation of 0...count - 1 that depends on blocks, seed and epoch."""
    generator = _generator(seed, ORDER_STREAM, epoch)
    if blocks is None:
        return generator.permutation(count)
    pieces = np.split(np.arange(count), blocks.starts[1:])
    turns = range(len(pieces)) if blocks.in_sequence else generator.permutation(len(pieces))
    order: list[np.ndarray] = []
    window: list[np.ndarray] = []
    for turn in turns:
        window.append(pieces[turn])
        if sum(map(len, window)) >= SHUFFLE_WINDOW:
            order.append(generator.permutation(np.concatenate(window)))
            window = []
    if window:
        order.append(generator.permutation(np.concatenate(window)))
    return np.concatenate(order)


def augmentation_stream(seed: int, position: Position) -> np.random.Generator | None:
    """Random generator for the augmentation of one image in one epoch; None in an ordered pass."""
    if position.epoch is None:
        return None
    return _generator(seed, AUGMENTATION_STREAM, position.epoch, position.index)


def _generator(seed: int, *key: int) -> np.random.Generator:
    """An independent random stream for every (seed, key)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
