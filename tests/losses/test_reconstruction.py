"""Pixel losses against numbers done by hand and against finite differences."""

import pytest
import torch

from smalti.losses import charbonnier, l1, l2


def test_values_by_hand():
    image = torch.tensor([[[[0.0, 0.5], [-1.0, 1.0]]]])
    reconstruction = torch.tensor([[[[0.5, 0.5], [-0.5, 0.0]]]])  # errors 0.5, 0, 0.5, -1
    assert l1(reconstruction, image).item() == pytest.approx(0.5)
    assert l2(reconstruction, image).item() == pytest.approx(0.375)
    by_hand = (2 * (0.25 + 1e-6) ** 0.5 + 1e-3 + (1 + 1e-6) ** 0.5) / 4
    assert charbonnier(reconstruction, image).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("loss", [l1, l2, charbonnier])
def test_gradient_against_finite_differences(loss):
    torch.manual_seed(0)
    image = torch.rand(2, 3, 4, 5, dtype=torch.float64) * 2 - 1
    reconstruction = (torch.rand(2, 3, 4, 5, dtype=torch.float64) * 2 - 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, image), (reconstruction,))


def test_charbonnier_has_a_gradient_of_zero_where_the_error_is_zero():
    image = torch.zeros(1, 1, 2, 2)
    reconstruction = torch.zeros(1, 1, 2, 2, requires_grad=True)
    charbonnier(reconstruction, image).backward()
    assert torch.equal(reconstruction.grad, torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("loss", [l1, l2, charbonnier])
def test_half_precision_is_averaged_in_single(loss):
    """A running sum in bf16 would stop growing at 256; here 0.25 is exact in bf16 and so is its mean."""
    image = torch.zeros(1, 3, 64, 64)
    reconstruction = torch.full((1, 3, 64, 64), 0.25, dtype=torch.bfloat16)
    result = loss(reconstruction, image)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx({l1: 0.25, l2: 0.0625, charbonnier: (0.0625 + 1e-6) ** 0.5}[loss], rel=1e-6)
