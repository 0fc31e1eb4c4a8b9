"""The two halves of VAR's step against loops written from their definitions, and the proportions of scales."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.ops import add_scale, proportional_grids, to_grid


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_to_grid_is_the_mean_of_the_area(height: int, width: int, h: int, w: int) -> None:
    h, w = min(h, height), min(w, width)
    f = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * 100 + width))
    expected = np.empty((2, 3, h, w))
    for i in range(h):
        for j in range(w):
            rows = slice(i * height // h, -(-(i + 1) * height // h))
            columns = slice(j * width // w, -(-(j + 1) * width // w))
            expected[:, :, i, j] = f.double().numpy()[:, :, rows, columns].mean((2, 3))
    np.testing.assert_allclose(to_grid(f, (h, w)).numpy(), expected, atol=1e-6)


def test_to_grid_at_full_size_changes_nothing() -> None:
    f = torch.randn(1, 2, 5, 7)
    assert torch.equal(to_grid(f, (5, 7)), f)


def test_add_scale_keeps_constants_and_adds_them_up() -> None:
    """Bicubic weights sum to one, so a constant map stays constant at any size, borders included."""
    f_hat = torch.full((1, 2, 7, 5), 0.25)
    result = add_scale(f_hat, torch.full((1, 2, 2, 3), 1.5), torch.nn.Identity())
    torch.testing.assert_close(result, torch.full((1, 2, 7, 5), 1.75))


def test_add_scale_at_full_size_is_a_plain_sum_through_phi() -> None:
    f_hat, codes = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    assert torch.equal(add_scale(f_hat, codes, lambda h: 3 * h), f_hat + 3 * codes)


def test_add_scale_does_not_write_into_its_arguments() -> None:
    f_hat, codes = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 2, 2)
    add_scale(f_hat, codes, torch.nn.Identity())
    assert f_hat.abs().sum() == 0
    assert codes.sum() == 4


@pytest.mark.parametrize(
    ("patch_nums", "size", "expected"),
    [
        ((1, 2, 4), (4, 4), ((1, 1), (2, 2), (4, 4))),
        ((1, 2, 4), (4, 8), ((1, 2), (2, 4), (4, 8))),
        ((1, 2, 4), (1, 1), ((1, 1), (1, 1), (1, 1))),
        ((1, 2, 3, 4), (3, 7), ((1, 2), (2, 4), (2, 5), (3, 7))),  # 3/4*3 = 2.25, 3/4*7 = 5.25, 2/4*7 = 3.5 -> 4
        ((5,), (9, 2), ((9, 2),)),
        ((1, 10), (3, 100), ((1, 10), (3, 100))),  # 0.3 rounds to 0, but a side is at least 1
    ],
)
def test_proportions(patch_nums: tuple[int, ...], size: tuple[int, int], expected: tuple) -> None:
    assert proportional_grids(patch_nums, *size) == expected


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 64), st.integers(1, 64))
def test_proportions_in_exact_arithmetic(sides: list[int], height: int, width: int) -> None:
    patch_nums = sorted(sides)
    grids = proportional_grids(patch_nums, height, width)
    assert grids[-1] == (height, width)
    for k, grid in enumerate(grids[:-1]):
        for side, full in zip(grid, (height, width), strict=True):
            exact = Fraction(patch_nums[k], patch_nums[-1]) * full
            assert abs(max(1, exact) - side) <= Fraction(1, 2)
            assert 1 <= side <= full
    assert list(grids) == sorted(grids)
