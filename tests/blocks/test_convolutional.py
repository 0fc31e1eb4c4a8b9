"""Encoder and decoder: sizes, locality, equivariance to shifts, signs, and gradients in every parameter."""

import pytest
import torch
from torch import Tensor, nn

from smalti.blocks import ConvDecoder, ConvEncoder, ResidualBlock
from smalti.blocks.convolutional import make_activation, make_norm

ACTIVATIONS = ["relu", "leaky_relu", "elu", "gelu", "silu"]
NORMS = ["group", "batch", "none"]


def encoder(
    stages: int = 2, blocks: int = 1, activation: str = "silu", norm: str = "group", channels: int = 3
) -> ConvEncoder:
    return ConvEncoder(channels, 8, 16, stages, blocks, activation, norm)


def decoder(
    stages: int = 2, blocks: int = 1, activation: str = "silu", norm: str = "group", channels: int = 3
) -> ConvDecoder:
    return ConvDecoder(channels, 8, 16, stages, blocks, activation, norm)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_decoder_mirrors_the_encoder(stages: int, blocks: int, channels: int) -> None:
    stride = 2**stages
    image = torch.randn(2, channels, 3 * stride, stride)
    z = encoder(stages, blocks, channels=channels)(image)
    assert z.shape == (2, 8, 3, 1)
    assert decoder(stages, blocks, channels=channels)(z).shape == image.shape


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_reach_every_parameter(activation: str, norm: str) -> None:
    for network, x in (
        (encoder(2, 2, activation, norm), torch.randn(4, 3, 16, 16)),
        (decoder(2, 2, activation, norm), torch.randn(4, 8, 4, 4)),
    ):
        x.requires_grad_()
        network(x).square().sum().backward()
        assert x.grad.abs().sum() > 0
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_end_has_an_activation(activation: str) -> None:
    """An encoder that ends in ReLU points into one orthant only; a decoder that does cannot paint black."""
    assert (encoder(activation=activation)(torch.randn(4, 3, 32, 32)) < 0).float().mean() > 0.2
    assert (decoder(activation=activation)(torch.randn(4, 8, 8, 8)) < 0).float().mean() > 0.2


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_moving_the_image_by_one_stride_moves_the_latent_by_one_cell(stages: int) -> None:
    """Checked away from the borders, which zero padding blurs; without norms, which look at the whole image."""
    network, stride = encoder(stages, norm="none"), 2**stages
    image = torch.randn(1, 3, 16 * stride, 16 * stride)
    moved = torch.roll(image, shifts=(stride, 2 * stride), dims=(2, 3))
    z, z_moved = network(image), network(moved)
    torch.testing.assert_close(z_moved[:, :, 6:-5, 7:-5], z[:, :, 5:-6, 5:-7], atol=1e-5, rtol=1e-4)


def test_one_cell_paints_only_its_neighbourhood() -> None:
    network, z = decoder(norm="none"), torch.randn(1, 8, 12, 12)
    other = z.clone()
    other[:, :, 6, 6] += 1
    changed = (network(z) - network(other)).abs().sum((0, 1)) > 1e-7
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    assert changed[24:28, 24:28].all()  # its own pixels
    assert rows.min() >= 24 - 16
    assert rows.max() < 28 + 16
    assert columns.min() >= 24 - 16
    assert columns.max() < 28 + 16


@pytest.mark.parametrize("norm", ["group", "none"])
def test_images_of_a_batch_do_not_see_each_other(norm: str) -> None:
    network, images = encoder(norm=norm), torch.randn(3, 3, 16, 16)
    together = network(images)
    for b in range(3):
        torch.testing.assert_close(together[b : b + 1], network(images[b : b + 1]), atol=1e-5, rtol=1e-4)


def test_a_residual_block_adds_to_its_input() -> None:
    block, x = ResidualBlock(16, "relu", "none"), torch.randn(2, 16, 5, 7)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(block(x), x)
    nn.init.constant_(block.layers[-1].bias, 0.5)
    assert torch.equal(block(x), x + 0.5)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("leaky_relu", lambda x: torch.where(x > 0, x, 0.01 * x)),
        ("elu", lambda x: torch.where(x > 0, x, x.exp() - 1)),
        ("silu", lambda x: x / (1 + (-x).exp())),
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
    ],
)
def test_activations_are_what_their_names_say(name: str, function: object) -> None:
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)
    torch.testing.assert_close(make_activation(name)(x), function(x))  # type: ignore[operator]


@pytest.mark.parametrize("channels", [1, 6, 16, 24, 48, 64, 200])
def test_group_norm_of_any_width(channels: int) -> None:
    x = torch.randn(2, channels, 6, 6) * 7 + 3
    y = make_norm("group", channels)(x)
    groups = make_norm("group", channels).num_groups
    assert channels % groups == 0
    grouped: Tensor = y.reshape(2, groups, -1)
    torch.testing.assert_close(grouped.mean(2), torch.zeros(2, groups), atol=1e-4, rtol=0)
    torch.testing.assert_close(grouped.var(2, unbiased=False), torch.ones(2, groups), atol=1e-3, rtol=0)


@pytest.mark.usefixtures("unchecked")
def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'tanh'"):
        make_activation("tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'layer'"):
        make_norm("layer", 8)  # type: ignore[arg-type]
