"""R1 against values derived by hand, and its gradient against finite differences."""

import pytest
import torch
import torch.nn.functional as F

from smalti.blocks import PatchDiscriminator
from smalti.losses import r1


def test_a_linear_discriminator_pays_half_its_squared_weights():
    """D(x) = <w, x>: the gradient is w at every x, so R1 is |w|^2 / 2 and its own gradient is w."""
    w = torch.randn(1, 3, 8, 8, requires_grad=True)
    penalty = r1(lambda image: F.conv2d(image, w), torch.randn(5, 3, 8, 8))
    assert penalty.item() == pytest.approx(w.square().sum().item() / 2, rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(penalty, w)[0], w.detach())


@pytest.mark.parametrize("size", [4, 8, 24])
def test_patches_count_as_samples_so_image_size_does_not_matter(size):
    w = torch.randn(1, 3, 4, 4)
    penalty = r1(lambda image: F.conv2d(image, w, stride=4), torch.randn(2, 3, size, size))
    assert penalty.item() == pytest.approx(w.square().sum().item() / 2, rel=1e-5)


def test_a_quadratic_discriminator_pays_the_mean_over_images():
    """D(x) = |x|^2: the gradient is 2 x, so R1 is the mean of 2 |x|^2."""
    image = torch.randn(6, 1, 5, 5)
    penalty = r1(lambda x: x.square().sum(dim=(1, 2, 3)).view(-1, 1, 1, 1), image)
    assert penalty.item() == pytest.approx(2 * image.square().sum().item() / 6, rel=1e-6)


def test_the_gradient_for_a_real_discriminator_is_right():
    network = PatchDiscriminator(1, 2, num_layers=1, norm="group").double()
    image = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    weights = dict(network.named_parameters())

    def penalty(kernel):
        return r1(lambda x: torch.func.functional_call(network, {**weights, "layers.2.weight": kernel}, x), image)

    kernel = weights["layers.2.weight"].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(penalty, kernel, fast_mode=True)


def test_it_is_computed_in_fp32_under_autocast_and_leaves_the_image_alone():
    network, image = PatchDiscriminator(hidden_dim=4), torch.randn(2, 3, 32, 32, requires_grad=True)
    plain = r1(network, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(r1(network, image), plain)
    plain.backward()
    assert image.grad is None
