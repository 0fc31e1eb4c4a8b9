"""PatchGAN: what a logit sees, any size and channels, images judged alone, the bound that spectral norm promises."""

import pytest
import torch
from torch import nn

from smalti.blocks import PatchDiscriminator


def small(**changes):
    torch.manual_seed(0)
    return PatchDiscriminator(**{"hidden_dim": 8, "norm": "none", **changes})


@pytest.mark.parametrize(("num_layers", "view"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_the_patch_of_the_paper(num_layers, view):
    """The receptive fields of Isola et al., appendix 6.1.2: 16 x 16, 34 x 34 (its n = 2), 70 x 70 for the default."""
    network = small(num_layers=num_layers)
    image = torch.randn(1, 3, 160, 160, requires_grad=True)
    logits = network(image)
    network(image)[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = image.grad.abs().sum(dim=(0, 1)) > 0
    assert int(seen.any(dim=1).sum()) == int(seen.any(dim=0).sum()) == view


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (7, 50), (28, 28), (32, 32), (33, 65)])
def test_gradients_reach_every_weight_and_every_pixel_at_any_size(channels, norm, spectral_norm, size):
    network = small(image_channels=channels, norm=norm, spectral_norm=spectral_norm, hidden_dim=16)
    image = torch.randn(4, channels, *size, requires_grad=True)
    logits = network(image)
    assert logits.shape[:2] == (4, 1)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert image.grad.abs().sum() > 0
    assert image.grad[..., : size[0] // 2, : size[1] // 2].abs().gt(0).all()


def test_with_groups_each_image_is_judged_alone_and_with_batch_norm_it_is_not():
    image = torch.randn(4, 3, 32, 32)
    alone = small(norm="group", hidden_dim=16)
    torch.testing.assert_close(alone(image)[:2], alone(image[:2]))
    together = small(norm="batch")
    assert not torch.allclose(together(image)[:2], together(image[:2]), atol=1e-3)


def test_with_spectral_norm_logits_cannot_move_further_than_the_kernels_allow():
    """Each kernel, as a matrix (out, in x 16), has a largest singular value of 1, whatever its weights grow to."""
    network = small(spectral_norm=True)
    convolutions = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for layer in convolutions:
            layer.parametrizations.weight.original.mul_(50)
    for _ in range(60):  # the power iteration goes one step a forward pass
        network(torch.zeros(1, 3, 32, 32))
    for layer in convolutions:
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers: got 0"),
        ({"hidden_dim": 0}, "hidden_dim: got 0"),
        ({"image_channels": 0}, "image_channels: got 0"),
        ({"norm": "layer"}, "norm: got 'layer'"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_an_image_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="got 1 channels, expected 3"):
        small()(torch.zeros(1, 1, 32, 32))
