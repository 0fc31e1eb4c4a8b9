"""Group normalisation: torch's values, and of channels-last features torch's gradients, too."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.ops import group_norm


def gradients(norm: object, x: Tensor, parameters: list[Tensor], upstream: Tensor) -> list[Tensor]:
    assert callable(norm)
    y = norm(x, 4, *(parameters or (None, None)), 1e-6)
    return [y, *torch.autograd.grad(y, [x, *parameters], upstream)]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("size", [(2, 8, 5, 3), (1, 12, 1, 7)])
def test_gradients_equal_those_in_float64(size: tuple[int, ...], offset: float, affine: bool) -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(size) + offset, torch.randn(size)
    parameters = [torch.randn(size[1]), torch.randn(size[1])] if affine else []

    def leaf(value: Tensor, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
        return value.to(dtype).contiguous(memory_format=layout if value.dim() == 4 else torch.contiguous_format)

    def answers(norm: object, dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
        x_, *parameters_ = (leaf(t, dtype, layout).requires_grad_() for t in (x, *parameters))
        return gradients(norm, x_, parameters_, leaf(upstream, dtype, layout))

    expected = answers(F.group_norm, torch.float64, torch.contiguous_format)
    theirs = answers(F.group_norm, torch.float32, torch.channels_last)
    ours = answers(group_norm, torch.float32, torch.channels_last)
    assert torch.equal(ours[0], theirs[0])
    for got, other, right in zip(ours, theirs, expected, strict=True):
        # As near to the truth as torch's kernel, up to a factor / 与 torch 的内核同样接近真值
        slack = 4 * (other - right).abs().max() + 1e-5 * right.abs().max()
        assert (got - right).abs().max() <= slack


def test_bf16_features_with_fp32_parameters() -> None:
    torch.manual_seed(0)
    x, upstream = (torch.randn(2, 8, 6, 6).bfloat16().contiguous(memory_format=torch.channels_last) for _ in range(2))
    x.requires_grad_()
    parameters = [torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True)]
    ours, theirs = (gradients(norm, x, parameters, upstream) for norm in (group_norm, F.group_norm))
    for got, expected in zip(ours, theirs, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)


def test_the_gradient_keeps_the_layout() -> None:
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(group_norm(x, 2, None, None, 1e-6).square().sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_second_derivatives_are_torchs() -> None:
    """As a gradient penalty asks for them."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = (torch.randn(8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    penalties = []
    for norm in (group_norm, F.group_norm):
        y = norm(x, 2, weight, bias, 1e-6)
        (slope,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(slope.square().sum(), [x, weight, bias]))
    for ours, theirs in zip(*penalties, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("groups", "mean"), [(32, 3.0), (8, 30.0), (32, -1.5)])
def test_no_digits_are_lost_far_from_zero(groups: int, mean: float) -> None:
    """Half of each image is one colour, as in drawings: sums over all of it in fp32 would drift."""
    x = torch.randn(2, 32, 64, 48) + mean
    x[..., 20:, :] = x[:, :, :1, :1] + 2.0
    weight, bias = torch.randn(32), torch.randn(32)
    right = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-6)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        ours, theirs = (group_norm(x, groups, weight, bias, 1e-6, exact) for exact in (True, False))
    assert torch.equal(theirs, F.group_norm(x, groups, weight, bias, 1e-6))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert (ours - right).abs().max() < (theirs - right).abs().max() / 5


@torch.no_grad()
def test_a_constant_group_is_its_bias() -> None:
    x = torch.full((1, 4, 6, 6), 7.3).contiguous(memory_format=torch.channels_last)
    bias = torch.randn(4)
    assert (group_norm(x, 2, torch.ones(4), bias, 1e-6, exact=True) - bias[:, None, None]).abs().max() < 1e-2
