"""The adaptive weight against two explicit backward passes, and what it is for: equal pulls on the last layer."""

import pytest
import torch
from torch import nn

from smalti.blocks import PatchDiscriminator
from smalti.losses import adaptive_weight


def setting():
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
    discriminator = PatchDiscriminator(hidden_dim=4)
    z, image = torch.randn(2, 4, 24, 24), torch.rand(2, 3, 24, 24)

    def losses():
        reconstruction = decoder(z)
        return (reconstruction - image).abs().mean(), -discriminator(reconstruction).mean()

    return decoder, losses


def test_against_two_explicit_backward_passes():
    decoder, losses = setting()
    norms = []
    for which in (0, 1):
        decoder.zero_grad()
        losses()[which].backward()
        norms.append(decoder[-1].weight.grad.norm().item())
    weight = adaptive_weight(*losses(), decoder[-1].weight, largest=1e9)
    assert weight.item() == pytest.approx(norms[0] / (norms[1] + 1e-6), rel=1e-5)
    assert weight.item() > 1
    assert not weight.requires_grad


def test_both_losses_then_pull_equally_and_can_still_be_minimised():
    decoder, losses = setting()
    reconstruction_loss, adversarial_loss = losses()
    weight = adaptive_weight(reconstruction_loss, adversarial_loss, decoder[-1].weight, largest=1e9)
    (pull,) = torch.autograd.grad(reconstruction_loss, decoder[-1].weight, retain_graph=True)
    (other,) = torch.autograd.grad(weight * adversarial_loss, decoder[-1].weight, retain_graph=True)
    assert other.norm().item() == pytest.approx(pull.norm().item(), rel=1e-3)
    assert all(parameter.grad is None for parameter in decoder.parameters()), "measuring leaves no gradient behind"
    (reconstruction_loss + weight * adversarial_loss).backward()


def test_it_is_cut_off_and_a_discriminator_without_opinion_does_no_harm():
    decoder, losses = setting()
    assert adaptive_weight(*losses(), decoder[-1].weight, largest=2.5).item() == 2.5
    reconstruction_loss, adversarial_loss = losses()
    nothing = adaptive_weight(reconstruction_loss, 0 * adversarial_loss, decoder[-1].weight, largest=100.0)
    assert nothing.item() == 100.0


def test_a_scale_changes_nothing_unless_it_overflows():
    decoder, losses = setting()
    plain, scaled = (adaptive_weight(*losses(), decoder[-1].weight, 1e9, scale) for scale in (1.0, 1024.0))
    assert scaled.item() == pytest.approx(plain.item(), rel=1e-5)
    assert adaptive_weight(*losses(), decoder[-1].weight, 1e9, float("inf")).item() == 0


def test_terms_that_do_not_depend_on_the_last_layer_change_nothing():
    decoder, losses = setting()
    reconstruction_loss, adversarial_loss = losses()
    commitment = decoder[0].weight.square().sum()
    weights = [
        adaptive_weight(loss, adversarial_loss, decoder[-1].weight, 1e9)
        for loss in (reconstruction_loss, reconstruction_loss + commitment)
    ]
    assert torch.equal(*weights)
