"""A linear layer in one pass equals the layer in steps, and one of packed weights the plain one."""

import math

import pytest
import torch
import torch.nn.functional as F

from smalti.ops.linear import ROWS_TO_PACK_FP32, linear, packed_linear


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 300])
def test_packed_it_is_the_formula_for_any_number_of_rows(dtype: torch.dtype, with_bias: bool, rows: int) -> None:
    """Weights packed for eight rows, among them a transposed view; against float64, as above."""
    generator = torch.Generator().manual_seed(0)
    x, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((rows, 1, 70), (50,)))
    for weight in (torch.randn(50, 70, generator=generator), torch.randn(70, 50, generator=generator).t()):
        weight, before = weight.to(dtype), weight.to(dtype).clone()
        with torch.no_grad():
            layer = packed_linear(weight, bias if with_bias else None, rows=8)
            if layer is None:
                pytest.skip("oneDNN does not offer this here")
            y = layer(x)
        expected = x.double() @ weight.double().t() + (bias.double() if with_bias else 0)
        assert y.dtype == dtype
        rounding = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(y.double(), expected, rtol=rounding, atol=max(rounding, 2e-5))
        assert torch.equal(weight, before)


def test_packed_only_where_it_is_right_and_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(5, 8)
    assert packed_linear(weight, None, rows=8) is None  # gradients
    with torch.no_grad():
        assert packed_linear(weight.double(), None, rows=8) is None
        assert packed_linear(weight, None, rows=ROWS_TO_PACK_FP32 - 1) is None
        assert packed_linear(weight.to("meta"), None, rows=8) is None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert packed_linear(weight, None, rows=8) is None
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert packed_linear(weight, None, rows=8) is None
