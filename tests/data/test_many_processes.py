"""Training streams cut over processes: the parts are the batch, nothing is lost, nothing is seen twice, none waits.

A source that holds only numbers stands in for images, so that hypothesis can try many sizes.
"""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smalti.data import order
from smalti.data.loader import training_batches
from smalti.data.order import endless_batches, epoch_order
from smalti.data.source import Blocks, ImageSource, UnreadableImageError
from smalti.data.transforms import TransformConfig

PLAIN = TransformConfig()


class Numbers(ImageSource):
    """`count` images of one pixel; those in `bad` cannot be read."""

    def __init__(self, count, bad=()):
        super().__init__()
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def key(self, index):
        return str(index)

    def label(self, index):
        return index

    def _read(self, index, enough):
        if index in self.bad:
            raise UnreadableImageError(self.key(index), "bad")
        return Image.new("L", (1, 1), index % 256)


def parts(count, world, batch_size, seed, start, batches, **options):
    """The first batches of every rank from batch number `start` on."""
    return [
        list(
            islice(
                training_batches(Numbers(count), PLAIN, batch_size, seed, start, rank=rank, world=world, **options),
                batches,
            )
        )
        for rank in range(world)
    ]


counts, worlds, sizes, seeds, starts = (
    st.integers(1, 60), st.integers(1, 5), st.integers(1, 9), st.integers(0, 3), st.integers(0, 20),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(counts, worlds, sizes, seeds, starts)
def test_the_parts_joined_are_the_batch_of_one_process(count, world, batch_size, seed, start):
    ranks = parts(count, world, batch_size, seed, start, 4)
    (whole,) = parts(count, 1, batch_size * world, seed, start, 4)
    for number, batch in enumerate(whole):
        pieces = [rank[number] for rank in ranks]
        assert all(len(piece) == batch_size for piece in pieces)
        assert sum((piece.keys for piece in pieces), ()) == batch.keys
        assert sum((piece.labels for piece in pieces), ()) == batch.labels
        assert torch.equal(torch.cat([piece.image for piece in pieces]), batch.image)


@settings(max_examples=60, deadline=None)
@given(counts, worlds, sizes, seeds)
def test_over_an_epoch_all_processes_together_see_every_image_once(count, world, batch_size, seed):
    batches = -(-2 * count // (batch_size * world))
    ranks = parts(count, world, batch_size, seed, 0, batches)
    seen = [key for number in range(batches) for rank in ranks for key in rank[number].keys]
    for epoch in (0, 1):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == sorted(map(str, range(count)))


@settings(max_examples=60, deadline=None)
@given(counts, worlds, sizes, seeds, starts)
def test_a_resumed_process_goes_on_where_it_was(count, world, batch_size, seed, start):
    whole = parts(count, world, batch_size, seed, 0, start + 2)
    resumed = parts(count, world, batch_size, seed, start, 2)
    for before, after in zip(whole, resumed, strict=True):
        assert [batch.keys for batch in before[start:]] == [batch.keys for batch in after]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.booleans(), st.integers(1, 20), seeds)
def test_images_in_blocks_are_shuffled_within_windows_and_each_comes_once(block_sizes, in_sequence, window, seed):
    starts = np.cumsum([0, *block_sizes[:-1]])
    count, blocks = sum(block_sizes), Blocks(tuple(starts.tolist()), in_sequence)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "SHUFFLE_WINDOW", window)
        orders = [epoch_order(count, blocks, seed, epoch) for epoch in (0, 1)]
        batches = list(islice(endless_batches(count, blocks, 3, seed, 0), 12))
        assert list(islice(endless_batches(count, blocks, 3, seed, 5), 7)) == batches[5:]
    stream = [position.index for batch in batches for position in batch]
    assert stream[: 2 * count] == np.concatenate(orders).tolist()[: len(stream)]
    for epoch in orders:
        assert sorted(epoch.tolist()) == list(range(count))
        turns = np.searchsorted(starts, epoch, side="right") - 1
        # A reader that keeps the blocks of one window never reads a block twice.
        kept, reads = [], 0
        for turn in turns:
            if turn not in kept:
                kept.append(turn)
                reads += 1
                while sum(block_sizes[each] for each in kept) > window + max(block_sizes):
                    kept.pop(0)
        assert reads == len(block_sizes)
        if in_sequence:
            firsts = list(dict.fromkeys(turns.tolist()))
            assert all(abs(place - turn) <= window for place, turn in enumerate(firsts))


def test_workers_change_nothing_in_any_process():
    here, there = parts(11, 2, 3, 1, 2, 5), parts(11, 2, 3, 1, 2, 5, workers=2)
    for one, other in zip(here, there, strict=True):
        assert [batch.keys for batch in one] == [batch.keys for batch in other]


def test_every_process_has_a_batch_for_every_number_even_where_its_files_are_bad():
    source = Numbers(6, bad=(0, 1, 2, 3, 4))
    for rank in range(3):
        stream = training_batches(source, PLAIN, 1, 0, rank=rank, world=3, cache_bytes=0)
        assert [batch.keys for batch in islice(stream, 8)] == [("5",)] * 8


@pytest.mark.parametrize(
    ("rank", "world", "message"),
    [
        (2, 2, "rank: got 2, expected less than world = 2"),
        (-1, 2, "rank: got -1, expected at least 0"),
        (0, 0, "world: got 0, expected at least 1"),
    ],
)
def test_a_rank_that_is_none_is_refused(rank, world, message):
    with pytest.raises(ValueError, match=message):
        training_batches(Numbers(3), PLAIN, 1, 0, rank=rank, world=world)
