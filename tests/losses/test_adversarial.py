"""The two adversarial losses against their formulas and probabilities, and what their gradients push."""

import math

import pytest
import torch

from smalti.losses import ADVERSARIAL_LOSSES

HINGE, NON_SATURATING = ADVERSARIAL_LOSSES["hinge"], ADVERSARIAL_LOSSES["non_saturating"]


def test_hinge_on_numbers_worked_out_by_hand():
    real, fake = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([-3.0, 0.25])
    assert HINGE.discriminator(real, fake).item() == pytest.approx(((0 + 0.5 + 2 + 0) / 4 + (0 + 1.25) / 2) / 2)
    assert HINGE.generator(fake).item() == pytest.approx(1.375)


def test_non_saturating_is_binary_cross_entropy():
    real, fake = torch.randn(5, 1, 3, 3) * 3, torch.randn(4, 1, 3, 3) * 3
    cross_entropy = torch.nn.BCEWithLogitsLoss()
    expected = (cross_entropy(real, torch.ones_like(real)) + cross_entropy(fake, torch.zeros_like(fake))) / 2
    assert NON_SATURATING.discriminator(real, fake).item() == pytest.approx(expected.item(), rel=1e-6)
    assert NON_SATURATING.generator(fake).item() == pytest.approx(
        -fake.double().sigmoid().log().mean().item(), rel=1e-5
    )


@pytest.mark.parametrize(("loss", "ignorance"), [(HINGE, 1.0), (NON_SATURATING, math.log(2))])
def test_a_discriminator_that_knows_nothing_costs_what_the_docstring_says(loss, ignorance):
    assert loss.discriminator(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(ignorance)


def test_non_saturating_gradient_stays_where_the_discriminator_wins_and_stays_finite():
    fake = torch.tensor([-200.0, -5.0, 200.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(NON_SATURATING.generator(fake), fake)
    torch.testing.assert_close(gradient * 3, torch.tensor([-1.0, -torch.sigmoid(torch.tensor(5.0)), 0.0]))


@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES.values())
def test_each_side_pushes_the_logits_its_own_way(loss):
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    up, down = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    (generator,) = torch.autograd.grad(loss.generator(fake), fake)
    assert (up < 0).all()
    assert (down > 0).all()
    assert (generator < 0).all()
