"""VectorQuantizer: values, losses and gradients against hand-derived ones, and the tutorial's layout bug."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.quantizers import VectorQuantizer

SHAPES = [(), (7,), (5, 3), (4, 4), (2, 3, 4)]


def rows(z: Tensor) -> np.ndarray:
    """Channels-first (B, C, *spatial) to float64 rows (N, C), by an explicit walk over positions."""
    z64 = z.detach().double().numpy()
    return np.stack([z64[(b, slice(None), *at)] for b in range(z.shape[0]) for at in np.ndindex(*z.shape[2:])])


def nearest(z_rows: np.ndarray, codebook: Tensor) -> np.ndarray:
    distances = ((z_rows[:, None] - codebook.detach().double().numpy()[None]) ** 2).sum(-1)
    return distances.argmin(1)


def quantizer(k: int = 20, d: int = 6, **options: object) -> VectorQuantizer:
    vq = VectorQuantizer(k, d, **options)
    nn.init.normal_(vq.embedding.weight)
    return vq


@pytest.mark.parametrize("spatial", SHAPES)
def test_codes_indices_and_loss_for_any_number_of_axes(spatial: tuple[int, ...]) -> None:
    vq, z = quantizer(), torch.randn(3, 6, *spatial)
    quantized, loss, indices = vq(z)
    z_rows = rows(z)
    expected = nearest(z_rows, vq.embedding.weight)
    assert indices.dtype == torch.int64
    assert indices.shape == (3, *spatial)
    np.testing.assert_array_equal(indices.flatten().numpy(), expected)
    codes = vq.embedding.weight.detach().double().numpy()[expected]
    np.testing.assert_array_equal(rows(quantized), codes)  # exactly codes, to the last bit
    assert loss.item() == pytest.approx(1.25 * ((codes - z_rows) ** 2).mean(), rel=1e-5)
    assert quantized.shape == z.shape
    assert loss.shape == ()


@pytest.mark.parametrize("beta", [0.0, 0.25, 2.0])
def test_gradients_of_both_loss_terms(beta: float) -> None:
    """d/dz = 2 beta (z - e) / (N D);  d/de_k = 2 sum over z that chose k of (e_k - z) / (N D)."""
    vq, z = quantizer(beta=beta), torch.randn(2, 6, 5, 3, requires_grad=True)
    _, loss, _ = vq(z)
    loss.backward()
    z_rows, codebook = rows(z), vq.embedding.weight.detach().double().numpy()
    chosen = nearest(z_rows, vq.embedding.weight)
    difference = z_rows - codebook[chosen]
    expected_codebook = np.zeros_like(codebook)
    np.add.at(expected_codebook, chosen, -2 * difference / z_rows.size)
    np.testing.assert_allclose(rows(z.grad), 2 * beta * difference / z_rows.size, atol=1e-7)
    np.testing.assert_allclose(vq.embedding.weight.grad.numpy(), expected_codebook, atol=1e-7)


def test_each_term_reaches_its_own_side_only() -> None:
    vq, z = quantizer(), torch.randn(2, 6, 9, requires_grad=True)
    terms = vq(z).terms
    (codebook_z, codebook_e) = torch.autograd.grad(terms["codebook"], [z, vq.embedding.weight], allow_unused=True)
    (commitment_z, commitment_e) = torch.autograd.grad(terms["commitment"], [z, vq.embedding.weight], allow_unused=True)
    assert codebook_z is None
    assert commitment_e is None
    assert codebook_e.abs().sum() > 0
    assert commitment_z.abs().sum() > 0


def test_the_straight_through_gradient_is_the_upstream_one() -> None:
    vq, z, upstream = quantizer(), torch.randn(2, 6, 5, 3, requires_grad=True), torch.randn(2, 6, 5, 3)
    vq(z).quantized.backward(upstream)
    assert torch.equal(z.grad, upstream)
    assert vq.embedding.weight.grad is None


def test_beta_weighs_the_commitment_and_not_the_codebook() -> None:
    output = quantizer(beta=0.7)(torch.randn(2, 6, 9))
    assert output.weights == {"codebook": 1.0, "commitment": 0.7}
    assert output.loss.item() == pytest.approx(
        output.terms["codebook"].item() + 0.7 * output.terms["commitment"].item()
    )


def test_an_optimizer_step_moves_codes_towards_their_vectors() -> None:
    vq, z = quantizer(), torch.randn(1, 6, 200)
    before = vq(z).terms["codebook"].item()
    optimizer = torch.optim.SGD(vq.parameters(), lr=20.0)
    for _ in range(20):
        optimizer.zero_grad()
        vq(z).loss.backward()
        optimizer.step()
    assert vq(z).terms["codebook"].item() < 0.7 * before


# ---- the tutorial's bug --------------------------------------------------------------------------------------------


def tutorial_loss(vq: VectorQuantizer, z: Tensor) -> Tensor:
    """The well-known bug: the codes are already NCHW again when they are compared with the NHWC latent."""
    z_nhwc = z.permute(0, 2, 3, 1)
    codes_nchw = vq.embedding(vq.encode(z)).permute(0, 3, 1, 2)
    return F.mse_loss(codes_nchw, z_nhwc.detach()) + vq.beta * F.mse_loss(codes_nchw.detach(), z_nhwc)


def our_loss(vq: VectorQuantizer, z: Tensor) -> Tensor:
    return vq(z).loss


def check_loss(loss_of: Callable[[VectorQuantizer, Tensor], Tensor], size: int) -> None:
    """The check that must fail on the bug: value and gradient at H = W = C, where all shapes agree."""
    vq, z = quantizer(16, size), torch.randn(2, size, size, size, requires_grad=True)
    loss = loss_of(vq, z)
    loss.backward()
    z_rows = rows(z)
    difference = z_rows - vq.embedding.weight.detach().double().numpy()[nearest(z_rows, vq.embedding.weight)]
    assert loss.item() == pytest.approx(1.25 * (difference**2).mean(), rel=1e-5)
    np.testing.assert_allclose(rows(z.grad), 2 * 0.25 * difference / z_rows.size, atol=1e-7)


@pytest.mark.parametrize("size", [2, 8])
def test_the_loss_compares_one_layout(size: int) -> None:
    check_loss(our_loss, size)


@pytest.mark.parametrize("size", [2, 8])
def test_the_check_fails_on_the_tutorial_bug(size: int) -> None:
    with pytest.raises(AssertionError):
        check_loss(tutorial_loss, size)


def test_the_tutorial_example_itself() -> None:
    """A VectorQuantizer(16, 64) on (1, 64, 8, 8), where the tutorial's version cannot even broadcast."""
    vq, z = quantizer(16, 64), torch.randn(1, 64, 8, 8)
    with pytest.raises((RuntimeError, UserWarning)):  # torch first warns of shapes that cannot be meant
        tutorial_loss(vq, z)
    assert vq(z).loss.item() == pytest.approx(
        1.25
        * ((rows(z) - vq.get_codebook().detach().double().numpy()[nearest(rows(z), vq.embedding.weight)]) ** 2).mean(),
        rel=1e-5,
    )


# ---- cosine --------------------------------------------------------------------------------------------------------


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_cosine_searches_on_the_sphere_and_returns_unit_codes() -> None:
    vq, z = quantizer(metric="cosine"), torch.randn(2, 6, 5, 3) * torch.rand(2, 1, 5, 3) * 10
    quantized, loss, indices = vq(z)
    u, v = unit(rows(z)), unit(vq.embedding.weight.detach().double().numpy())
    expected = (u @ v.T).argmax(1)
    np.testing.assert_array_equal(indices.flatten().numpy(), expected)
    np.testing.assert_allclose(rows(quantized), v[expected], atol=1e-6)
    np.testing.assert_allclose(vq.get_codebook().detach().numpy(), v, atol=1e-6)
    assert loss.item() == pytest.approx(1.25 * ((u - v[expected]) ** 2).mean(), rel=1e-5)
    assert torch.equal(vq.decode(indices), quantized.detach())


def test_cosine_gradients() -> None:
    """Through the projection u = z / |z|: the gradient is (g - u (u.g)) / |z|."""
    vq, z, upstream = quantizer(metric="cosine"), torch.randn(2, 6, 4, requires_grad=True), torch.randn(2, 6, 4)
    (vq(z).quantized * upstream).sum().backward()
    length = np.linalg.norm(rows(z), axis=1, keepdims=True)
    u, g = rows(z) / length, rows(upstream)
    np.testing.assert_allclose(rows(z.grad), (g - u * (u * g).sum(1, keepdims=True)) / length, atol=1e-5)

    vq(z).terms["codebook"].backward()
    weight = vq.embedding.weight.detach().double().numpy()
    v, chosen = unit(weight), (u @ unit(weight).T).argmax(1)
    gradient = np.zeros_like(weight)
    np.add.at(gradient, chosen, 2 * (v[chosen] - u) / u.size)
    gradient = (gradient - v * (v * gradient).sum(1, keepdims=True)) / np.linalg.norm(weight, axis=1, keepdims=True)
    np.testing.assert_allclose(vq.embedding.weight.grad.numpy(), gradient, atol=1e-6)


def test_cosine_ignores_the_length_of_the_latent() -> None:
    vq, z = quantizer(metric="cosine"), torch.randn(2, 6, 9)
    assert torch.equal(vq(z).indices, vq(z * 37).indices)
    torch.testing.assert_close(vq(z).loss, vq(z * 37).loss)


def test_a_cosine_codebook_starts_on_the_sphere_where_its_gradient_is_no_longer_than_others() -> None:
    vq = VectorQuantizer(4096, 8, metric="cosine")
    torch.testing.assert_close(vq.embedding.weight.detach().norm(dim=1), torch.ones(4096))
    vq(torch.randn(2, 8, 8, 8)).loss.backward()
    assert vq.embedding.weight.grad.norm() < 1
