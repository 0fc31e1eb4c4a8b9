"""A linear layer in one pass equals the layer in steps."""

import math

import pytest
import torch
import torch.nn.functional as F

from smalti.ops.linear import linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_the_formula(dtype: torch.dtype, gelu: bool, with_bias: bool) -> None:
    """Against float64: one rounding of the result, beside those of sums in fp32."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=generator).to(dtype) for s in ((2, 5, 40), (24, 40), (24,)))
    y = x.double() @ weight.double().t() + (bias.double() if with_bias else 0)
    if gelu:
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    with torch.no_grad():
        result = linear(x, weight, bias if with_bias else None, gelu=gelu)
    assert result.dtype == dtype
    rounding = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), y, rtol=rounding, atol=max(rounding, 5e-6))


def test_gradients_are_those_of_the_steps() -> None:
    x, weight, bias = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)
    twins = [[t.clone().requires_grad_() for t in (x, weight, bias)] for _ in range(2)]
    linear(*twins[0], gelu=True).square().sum().backward()
    F.gelu(F.linear(*twins[1]), approximate="tanh").square().sum().backward()
    for a, b in zip(*twins, strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def test_autocast_decides_the_format() -> None:
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight, None).dtype == torch.bfloat16
