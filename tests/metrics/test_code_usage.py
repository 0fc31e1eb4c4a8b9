"""Usage, perplexity and entropy against counting in plain Python, their independence of the batch, and collapse."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.metrics import CodeUsage


def entropy_by_counting(codes):
    counts = Counter(codes)
    return -sum(n / len(codes) * math.log2(n / len(codes)) for n in counts.values())


def random_indices(batch, vocab_size, grids, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, vocab_size, (batch, *grid), generator=generator) for grid in grids)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 7), vocab_size=st.integers(1, 40), cuts=st.lists(st.integers(1, 6), max_size=3))
def test_numbers_are_those_of_the_whole_set(batch, vocab_size, cuts):
    scales = random_indices(batch, vocab_size, ((1, 1), (2, 3), (5, 4)), seed=batch)
    usage = CodeUsage(vocab_size, num_scales=3)
    for part in zip(*(torch.tensor_split(scale, sorted(cuts)) for scale in scales), strict=True):
        usage.update(part)
    result = usage.compute()
    per_scale = [scale.flatten().tolist() for scale in scales]
    everything = [code for codes in per_scale for code in codes]
    for statistics, codes in zip((*result.scales, result.total), (*per_scale, everything), strict=True):
        assert statistics.tokens == len(codes)
        assert statistics.used_codes == len(set(codes))
        assert statistics.usage == pytest.approx(len(set(codes)) / vocab_size)
        assert statistics.entropy_bits == pytest.approx(entropy_by_counting(codes), abs=1e-9)
        assert statistics.perplexity == pytest.approx(2 ** entropy_by_counting(codes))
    assert result.grids == ((1, 1), (2, 3), (5, 4))


def test_batch_usage_would_have_differed():
    """What this class is for: each image alone uses half of the codes that the set uses."""
    usage = CodeUsage(4)
    usage.update(torch.tensor([[[0, 1]]]))
    assert usage.compute().total.usage == 0.5
    usage.update(torch.tensor([[[2, 3]]]))
    assert usage.compute().total.usage == 1.0
    assert usage.compute().total.entropy_bits == pytest.approx(2.0)


def test_the_largest_grid_is_kept():
    usage = CodeUsage(4)
    for grid in ((2, 2), (3, 5), (4, 1)):
        usage.update(random_indices(1, 4, (grid,)))
    assert usage.compute().grids == ((3, 5),)


@pytest.mark.parametrize(("bad", "value"), [(-1, -1), (5, 5)])
def test_foreign_indices_are_refused_and_leave_no_trace(bad, value):
    usage = CodeUsage(5, num_scales=2)
    usage.update(random_indices(1, 5, ((1, 1), (2, 2))))
    before = usage.compute()
    broken = torch.tensor([[[0, 1], [2, bad]]])
    with pytest.raises(ValueError, match=f"scale 1: got the value {value}.*expected 0 to 4"):
        usage.update((torch.zeros(1, 1, 1, dtype=torch.int64), broken))
    assert usage.compute() == before


def test_wrong_numbers_of_scales_and_no_tokens_are_refused():
    with pytest.raises(ValueError, match="got 1 scales, expected 2"):
        CodeUsage(5, num_scales=2).update(torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="no token"):
        CodeUsage(5).compute()
    with pytest.raises(ValueError, match="vocab_size: got 0"):
        CodeUsage(0)


def test_collapse_is_a_single_code_above_one_position():
    usage = CodeUsage(8, num_scales=3)
    last = torch.arange(32).reshape(2, 4, 4) % 8
    usage.update((torch.zeros(2, 1, 1, dtype=torch.int64), torch.full((2, 2, 2), 3), last))
    (reason,) = usage.compute().collapse(min_usage=0.1)
    assert reason == "scale 1 (2x2) used a single code for all its 8 tokens"
    usage.update((torch.zeros(1, 1, 1, dtype=torch.int64), torch.tensor([[[3, 3], [3, 4]]]), last[:1]))
    assert usage.compute().collapse(min_usage=0.1) == ()


def test_collapse_is_too_few_of_the_codes_that_could_be_used():
    usage = CodeUsage(1000)
    usage.update(torch.arange(20).reshape(1, 4, 5) % 4)  # 20 tokens can use 20 codes; they used 4
    assert usage.compute().collapse(min_usage=0.2) == ()
    assert usage.compute().collapse(min_usage=0.21) == ("4 of 20 possible codes were used, less than 21%",)
    usage.update(torch.arange(4000).reshape(1, 40, 100) % 4)
    assert usage.compute().collapse(min_usage=0.01) == ("4 of 1000 possible codes were used, less than 1%",)
    assert usage.compute().collapse(min_usage=0.0) == ()
