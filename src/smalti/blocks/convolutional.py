"""A small convolutional encoder and decoder: strided convolutions down, transposed convolutions up.

Source: the networks of van den Oord et al. 2017 (arXiv 1711.00937), section 4.1, with the pre-activation residual block
of He et al. 2016 (arXiv 1603.05027). Encoder and decoder end without an activation: after a ReLU, no component of the
latent could be negative, while the codes are distributed around zero.

Legend: B images, C image channels, D embedding_dim, s = 2 ** num_stages the stride.
"""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from smalti.blocks.norms import GroupNorm
from smalti.checks import one_of

Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu"]
Norm = Literal["group", "batch", "none"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def make_activation(name: str) -> nn.Module:
    """The activation layer with this name."""
    one_of(get_args(Activation), activation=name)
    return _ACTIVATIONS[name]()


def make_norm(name: str, channels: int) -> nn.Module:
    """The normalisation layer with this name. "group" has 16 channels per group; one group if 16 is no divisor."""
    one_of(get_args(Norm), norm=name)
    if name == "group":
        return GroupNorm(channels, max(1, channels // 16) if channels % 16 == 0 else 1, eps=1e-5)
    return nn.BatchNorm2d(channels) if name == "batch" else nn.Identity()


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))): a 3×3 then a 1×1 convolution."""

    def __init__(self, channels: int, activation: str, norm: str):
        super().__init__()
        self.layers = nn.Sequential(
            make_norm(norm, channels),
            make_activation(activation),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            make_norm(norm, channels),
            make_activation(activation),
            nn.Conv2d(channels, channels, kernel_size=1),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """(B, C, H, W) to the same shape."""
        return x + self.layers(x)


def stage_widths(hidden_dim: int, num_stages: int) -> list[int]:
    """Channels after each down-sampling stage: half of `hidden_dim` before the last stage, to save computation."""
    return [max(1, hidden_dim // 2) if stage < num_stages - 1 else hidden_dim for stage in range(num_stages)]


class ConvEncoder(nn.Module):
    """Image (B, C, H, W) to latent (B, D, H / s, W / s); H and W are multiples of s."""

    def __init__(
        self,
        image_channels: int,
        embedding_dim: int,
        hidden_dim: int,
        num_stages: int,
        num_res_blocks: int,
        activation: str,
        norm: str,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        channels = image_channels
        for width in stage_widths(hidden_dim, num_stages):
            layers.append(nn.Conv2d(channels, width, kernel_size=4, stride=2, padding=1))
            layers += [ResidualBlock(width, activation, norm) for _ in range(num_res_blocks)]
            layers.append(make_activation(activation))
            channels = width
        layers.append(nn.Conv2d(channels, embedding_dim, kernel_size=3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hs ws"]:
        """(B, C, H, W) in [-1, 1] to (B, D, H / s, W / s)."""
        return self.layers(image)


class ConvDecoder(nn.Module):
    """Quantized latent (B, D, h, w) to image (B, C, h * s, w * s): the encoder mirrored."""

    def __init__(
        self,
        image_channels: int,
        embedding_dim: int,
        hidden_dim: int,
        num_stages: int,
        num_res_blocks: int,
        activation: str,
        norm: str,
    ):
        super().__init__()
        widths = stage_widths(hidden_dim, num_stages)[::-1]
        layers: list[nn.Module] = [
            nn.Conv2d(embedding_dim, widths[0] if widths else hidden_dim, kernel_size=3, padding=1)
        ]
        for width, after in zip(widths, [*widths[1:], image_channels], strict=True):
            layers += [ResidualBlock(width, activation, norm) for _ in range(num_res_blocks)]
            layers.append(make_activation(activation))
            layers.append(nn.ConvTranspose2d(width, after, kernel_size=4, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, z_q: Float[Tensor, "b d hs ws"]) -> Float[Tensor, "b c h w"]:
        """(B, D, h, w) to (B, C, h * s, w * s), roughly in [-1, 1], not clamped."""
        return self.layers(z_q)
