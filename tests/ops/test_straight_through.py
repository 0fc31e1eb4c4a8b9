"""The straight-through estimator: exact codes forward, the unchanged gradient backward."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.ops import straight_through


@given(st.floats(1e-30, 1e30), st.floats(1e-30, 1e30))
def test_the_value_is_the_code_to_the_last_bit(scale_z: float, scale_q: float) -> None:
    """`z + (z_q - z)` would lose every digit of a small code beside a large latent."""
    z, z_q = torch.randn(50) * scale_z, torch.randn(50) * scale_q
    assert torch.equal(straight_through(z, z_q), z_q)


def test_the_gradient_goes_to_z_alone_and_unchanged() -> None:
    z = torch.randn(2, 3, 5, requires_grad=True)
    z_q = torch.randn(2, 3, 5, requires_grad=True)
    upstream = torch.randn(2, 3, 5)
    straight_through(z, z_q).backward(upstream)
    assert torch.equal(z.grad, upstream)
    assert z_q.grad is None
