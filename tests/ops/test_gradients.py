"""Gradient estimators against formulas written out with dense matrices, and entropies against listing all codes."""

import math

import pytest
import torch
import torch.nn.functional as F

from smalti.ops import (
    bit_entropy,
    divergence_from_uniform,
    index_backpropagation,
    map_tiles,
    mean_bit_code_distribution,
    rotation_trick,
    straight_through,
)
from smalti.ops import tiles as tiles_module


def test_straight_through_returns_the_code_and_the_gradient_untouched():
    z, z_q, g = (torch.randn(50, 3) * 1e3 for _ in range(3))
    z.requires_grad_()
    z_q.requires_grad_()
    out = straight_through(z, z_q)
    out.backward(g)
    assert torch.equal(out, z_q)
    assert torch.equal(z.grad, g)
    assert z_q.grad is None


def rotation_matrix(e: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The rotation in the plane of e and q by the angle between them, from its textbook definition (float64)."""
    e, q = e / e.norm(), q / q.norm()
    orthogonal = q - (q @ e) * e
    if orthogonal.norm() < 1e-12:
        return torch.eye(len(e), dtype=e.dtype)
    v = orthogonal / orthogonal.norm()
    cos, sin = q @ e, q @ v
    plane = torch.stack([e, v], dim=1)
    turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=e.dtype)
    return torch.eye(len(e), dtype=e.dtype) - plane @ plane.T + plane @ turn @ plane.T


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_rotation_trick_is_a_scaled_rotation(dim: int):
    z = torch.randn(20, dim, dtype=torch.float64, requires_grad=True)
    z_q = torch.randn(20, dim, dtype=torch.float64, requires_grad=True)
    g = torch.randn(20, dim, dtype=torch.float64)
    out = rotation_trick(z, z_q)
    out.backward(g)
    assert torch.equal(out, z_q)
    assert z_q.grad is None
    for row in range(20):
        matrix = rotation_matrix(z[row].detach(), z_q[row].detach()) * (z_q[row].norm() / z[row].norm()).detach()
        torch.testing.assert_close(matrix @ z[row].detach(), z_q[row].detach())
        torch.testing.assert_close(z.grad[row], matrix.T @ g[row])


def test_rotation_trick_survives_zero_and_opposite_vectors():
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1e-30]], requires_grad=True)
    z_q = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    out = rotation_trick(z, z_q)
    out.sum().backward()
    assert torch.equal(out, z_q)
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() < 10


def test_index_backpropagation_equals_the_one_hot_product():
    logits = torch.randn(30, 7, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    g = torch.randn(30, 4, dtype=torch.float64)
    indices = logits.argmax(dim=1)
    soft = logits.softmax(dim=1)
    expected = (F.one_hot(indices, 7) - soft.detach() + soft) @ codebook
    expected_grads = torch.autograd.grad(expected, (logits, codebook), g, retain_graph=True)
    out = index_backpropagation(logits.softmax(dim=1), indices, codebook)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out, (logits, codebook), g), expected_grads)
    assert torch.equal(out, codebook[indices])


def test_map_tiles_changes_neither_values_nor_gradients_nor_draws(monkeypatch: pytest.MonkeyPatch):
    z = torch.randn(100, 3, requires_grad=True)
    weight = torch.randn(3, 5, requires_grad=True)

    def function(tile: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(tile.shape[0], 5).exponential_()
        return ((tile @ weight).exp() * noise).sum(dim=0)

    results = []
    for entries in (2**23, 5 * 17):  # in one piece; in tiles of 17 rows
        monkeypatch.setattr(tiles_module, "TILE_ENTRIES", entries)
        torch.manual_seed(0)
        tiles = map_tiles(function, z, columns=5)
        total = torch.stack(tiles).sum(dim=0)
        results.append((len(tiles), total, *torch.autograd.grad(total.sum(), (z, weight))))
    assert (results[0][0], results[1][0]) == (1, 6)
    for whole, tiled in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(whole, tiled)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_entropies_of_bits_equal_those_of_all_codes_listed(bits: int):
    logits = torch.randn(40, bits, dtype=torch.float64, requires_grad=True)
    codes = (torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1
    p_bit = torch.sigmoid(logits)[:, None]
    p = torch.where(codes.bool(), p_bit, 1 - p_bit).prod(dim=2)  # (N, 2**bits), written out
    torch.testing.assert_close(mean_bit_code_distribution(logits), p.mean(dim=0))
    torch.testing.assert_close(bit_entropy(logits).sum(dim=1), -(p * p.log()).sum(dim=1))
    mean = p.mean(dim=0)
    expected = math.log(2**bits) + (mean * mean.log()).sum()
    divergence = divergence_from_uniform(mean_bit_code_distribution(logits))
    torch.testing.assert_close(divergence, expected)
    grads = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (divergence, expected)]
    torch.testing.assert_close(*grads)


def test_mean_distribution_in_tiles_equals_the_whole(monkeypatch: pytest.MonkeyPatch):
    logits = torch.randn(64, 7, requires_grad=True)
    whole = mean_bit_code_distribution(logits)
    grad = torch.autograd.grad(divergence_from_uniform(whole), logits)[0]
    monkeypatch.setattr(tiles_module, "TILE_ENTRIES", 8 * 16 * 10)  # tiles of 10 rows
    tiled = mean_bit_code_distribution(logits)
    torch.testing.assert_close(tiled, whole)
    torch.testing.assert_close(torch.autograd.grad(divergence_from_uniform(tiled), logits)[0], grad)


def test_entropies_are_exact_and_finite_at_the_edges():
    logits = torch.tensor([0.0, 30.0, -30.0, 500.0, -1e6], requires_grad=True)
    entropy = bit_entropy(logits)
    entropy.sum().backward()
    assert entropy[0].item() == pytest.approx(math.log(2))
    # 30 nats: H = e^-30 (1 + 30) to first order; naive formulas give 0 or lose all digits here
    torch.testing.assert_close(entropy[1:3], torch.full((2,), 31 * math.exp(-30)), rtol=1e-5, atol=0)
    assert logits.grad.isfinite().all()
    one_code = torch.tensor([1.0, 0.0, 0.0, 0.0], requires_grad=True)
    divergence = divergence_from_uniform(one_code)
    divergence.backward()
    assert divergence.item() == pytest.approx(math.log(4))
    assert one_code.grad.isfinite().all()
    assert divergence_from_uniform(torch.full((4,), 0.25)).item() == pytest.approx(0, abs=1e-6)
