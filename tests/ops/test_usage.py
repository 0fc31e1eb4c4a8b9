"""Counts, sums and what they say, against numpy and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.ops import code_sums, count_codes, usage_statistics


@given(st.lists(st.integers(0, 9), max_size=60))
def test_counts(values: list[int]) -> None:
    counts = count_codes(torch.tensor(values, dtype=torch.int64).reshape(1, -1), 10)
    assert counts.tolist() == [values.count(code) for code in range(10)]


def test_sums_in_float32_of_any_dtype() -> None:
    z, indices = torch.randn(500, 6), torch.randint(0, 9, (500,))
    expected = np.zeros((12, 6))
    np.add.at(expected, indices.numpy(), z.double().numpy())
    np.testing.assert_allclose(code_sums(z, indices, 12).numpy(), expected, atol=1e-4)
    assert code_sums(z.half(), indices, 12).dtype == torch.float32
    assert code_sums(z[:0], indices[:0], 3).tolist() == [[0.0] * 6] * 3


@pytest.mark.parametrize("k", [1, 2, 64, 1000])
def test_uniform_usage(k: int) -> None:
    statistics = usage_statistics(torch.full((k,), 7))
    assert statistics.tokens == 7 * k
    assert statistics.used_codes == k
    assert statistics.usage == 1
    assert statistics.perplexity == pytest.approx(k)
    assert statistics.entropy_bits == pytest.approx(math.log2(k), abs=1e-12)


def test_one_code_and_none() -> None:
    one = usage_statistics(torch.tensor([0, 9, 0, 0]))
    assert (one.used_codes, one.usage, one.perplexity, one.entropy_bits) == (1, 0.25, 1.0, 0.0)
    none = usage_statistics(torch.zeros(4, dtype=torch.int64))
    assert (none.tokens, none.used_codes, none.usage, none.perplexity, none.entropy_bits) == (0, 0, 0.0, 0.0, 0.0)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=30).filter(lambda counts: sum(counts) > 0))
def test_entropy_against_its_definition(counts: list[int]) -> None:
    p = [count / sum(counts) for count in counts if count]
    entropy = -math.fsum(x * math.log2(x) for x in p)
    statistics = usage_statistics(torch.tensor(counts))
    assert statistics.entropy_bits == pytest.approx(entropy, abs=1e-9)
    assert statistics.perplexity == pytest.approx(2**entropy, rel=1e-9)
    assert statistics.used_codes == len(p)
