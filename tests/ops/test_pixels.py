"""uint8 <-> [-1, 1]: exact on all 256 values, nearest value elsewhere, total on what floats can hold."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.ops.pixels import to_float, to_uint8

ALL = torch.arange(256, dtype=torch.uint8)


def test_ends_are_exact_and_all_values_lie_on_the_line():
    values = to_float(ALL)
    assert values.dtype == torch.float32
    assert (values[0].item(), values[255].item()) == (-1.0, 1.0)
    expected = [float(2 * Fraction(k, 255) - 1) for k in range(256)]
    np.testing.assert_allclose(values.numpy(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_every_value_comes_back(dtype):
    assert torch.equal(to_uint8(to_float(ALL).to(dtype)), ALL)


@given(st.floats(-1, 1, width=32))
def test_nearest_value_by_exact_arithmetic(value):
    exact = (Fraction(value) + 1) * Fraction(255, 2)
    got = to_uint8(torch.tensor([value], dtype=torch.float32)).item()
    assert abs(got - exact) <= Fraction(1, 2) + Fraction(1, 10**4)  # the sum value + 1 is rounded to float32


def test_beyond_the_range_and_not_a_number():
    odd = torch.tensor([-7.0, 1.001, float("inf"), -float("inf"), float("nan")])
    assert to_uint8(odd).tolist() == [0, 255, 255, 0, 0]


def test_bfloat16_is_computed_in_float32():
    image = torch.linspace(-1, 1, 1001).to(torch.bfloat16)
    assert torch.equal(to_uint8(image), to_uint8(image.float()))


def test_undeclared_ranges_are_refused():
    # The tests run under beartype, which refuses these first; without it smalti's own check answers.
    unchecked_to_float = getattr(to_float, "__wrapped__", to_float)
    unchecked_to_uint8 = getattr(to_uint8, "__wrapped__", to_uint8)
    with pytest.raises(ValueError, match=r"image: got torch\.float32"):
        unchecked_to_float(torch.zeros(3))
    with pytest.raises(ValueError, match=r"image: got torch\.int64"):
        unchecked_to_uint8(torch.zeros(3, dtype=torch.int64))
