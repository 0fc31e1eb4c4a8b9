"""LeCam: formula, averages, and that they survive saving."""

import pytest
import torch

from smalti.losses.lecam import DECAY, LeCam


def test_penalty_and_averages_against_the_same_written_out():
    lecam, averages = LeCam(), None
    for _ in range(5):
        real, fake = torch.randn(3, 1, 2, 2) + 1, torch.randn(3, 1, 2, 2) - 1
        means = [real.double().mean().item(), fake.double().mean().item()]
        averages = means if averages is None else [DECAY * a + (1 - DECAY) * m for a, m in zip(averages, means)]  # noqa: B905
        lecam.update(real.mean(), fake.mean())
        expected = (real - averages[1]).pow(2).mean() + (fake - averages[0]).pow(2).mean()
        assert lecam(real, fake).item() == pytest.approx(expected.item(), rel=1e-5)


def test_it_pulls_each_side_toward_the_other_and_the_averages_get_no_gradient():
    lecam = LeCam()
    lecam.update(torch.tensor(2.0, requires_grad=True), torch.tensor(-2.0))
    real, fake = torch.tensor([2.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    down, up = torch.autograd.grad(lecam(real, fake), (real, fake))
    assert (down.item(), up.item()) == (8.0, -8.0)
    assert not any(buffer.requires_grad for buffer in lecam.buffers())


def test_a_saved_one_goes_on_as_if_it_had_never_stopped():
    one, other = LeCam(), LeCam()
    one.update(torch.tensor(1.0), torch.tensor(-1.0))
    other.load_state_dict(one.state_dict())
    for lecam in (one, other):
        lecam.update(torch.tensor(3.0), torch.tensor(0.0))
    assert torch.equal(one.real, other.real)
    assert torch.equal(one.fake, other.fake)
    assert one.real.item() == pytest.approx(1.02)
