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
