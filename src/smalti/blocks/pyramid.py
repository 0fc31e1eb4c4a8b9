"""Encoder and decoder of the VQGAN family: a pyramid of residual blocks; each level halves or doubles the size.

Source: Esser et al. 2021 (arXiv 2012.09841). One pair of classes serves taming-transformers, latent diffusion, VAR,
LlamaGen, MaskGIT, IBQ, Open-MAGVIT2, MoVQ, Chameleon, Janus and Cosmos; `PyramidConfig` has their differences.
Convolutions run in the channels-last memory layout, which is faster on CPUs and on GPUs with tensor cores.

Legend: B images, C image channels, D embedding_dim, s the stride.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.blocks.haar import haar, inverse_haar
from smalti.blocks.norms import AdaptiveGroupNorm
from smalti.blocks.resampling import Downsample, Upsample, downsample_kind, upsample_kind
from smalti.blocks.resnet import AttentionBlock, BlockStyle, ResnetBlock
from smalti.blocks.transformer import MOST_BLOCKS
from smalti.checks import at_least, between
from smalti.formats.arguments import construct
from smalti.formats.plain import added_later, from_plain

MidBlock = Literal["residual", "attention"]


@dataclass(frozen=True)
class PyramidConfig:
    """Sizes and variants of a VQGAN's encoder or decoder. Level 0 has the image's resolution, the last the latent's."""

    widths: tuple[int, ...] = (128, 128, 256, 256, 512)
    """Channels at each level; the stride is 2 ** (levels - 1), unless `num_resamplings` or `haar_rounds` change it."""
    num_res_blocks: int | tuple[int, ...] = 2
    """Residual blocks per level: one number for all levels, or one for each. Decoders usually have one more."""
    attention_levels: tuple[int, ...] | None = None
    """Levels with attention after each residual block; None: the last level."""
    mid: tuple[MidBlock, ...] = ("residual", "attention", "residual")
    """Blocks at the latent's resolution between the levels and the latent."""
    latent_channels: int = 256
    """Channels between the pyramid and the projection."""
    projection: int = 1
    """Kernel size of the convolution between latent_channels and embedding_dim; 0: no convolution."""
    stem_width: int | None = None
    """Channels after an encoder's first convolution; None: as at level 0."""
    latent_kernel: int = 3
    """Kernel size of the convolution from an encoder's last block to latent_channels."""
    resample: str = "conv"
    """Kind of layer that halves or doubles the size, see `resampling.py`."""
    adaptive: bool = False
    """Whether each level of a decoder starts with a norm that depends on the latent (Open-MAGVIT2)."""
    style: BlockStyle = field(default_factory=BlockStyle)
    """Variant of the blocks."""
    num_resamplings: int | None = added_later(None)
    """Number of levels, the first to run, that halve or double the size; None: all but the last."""
    haar_rounds: int = added_later(0)
    """Rounds of the Haar transform before an encoder's first and after a decoder's last convolution (Cosmos)."""
    noise: bool = added_later(False)
    """Whether a decoder takes, besides the latent, noise of the same shape (WeTok)."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths: got {self.widths}, expected at least one level of at least 1 channel")
        blocks, levels = self.num_res_blocks, len(self.widths)
        for number in (blocks,) if isinstance(blocks, int) else blocks:
            between(1, MOST_BLOCKS, num_res_blocks=number)
        if not isinstance(blocks, int) and len(blocks) != levels:
            raise ValueError(f"num_res_blocks: got {len(blocks)} numbers, expected one for each of {levels} levels")
        if self.num_resamplings is not None:
            between(0, levels, num_resamplings=self.num_resamplings)
        between(0, 4, haar_rounds=self.haar_rounds)
        at_least(1, latent_channels=self.latent_channels)
        if self.latent_kernel < 1 or self.latent_kernel % 2 == 0:
            raise ValueError(f"latent_kernel: got {self.latent_kernel}, expected an odd kernel size")
        beyond = [level for level in self.attention_levels or () if not 0 <= level < len(self.widths)]
        if beyond:
            raise ValueError(f"attention_levels: got {beyond[0]}, expected levels from 0 to {len(self.widths) - 1}")
        if self.projection < 0 or (self.projection % 2 == 0 and self.projection != 0):
            raise ValueError(f"projection: got {self.projection}, expected an odd kernel size, or 0 for none")

    @classmethod
    def of(cls, config: "Mapping[str, Any] | PyramidConfig") -> "PyramidConfig":
        """From the plain dictionary of a config.json; lists become tuples."""
        if isinstance(config, Mapping) and isinstance(config.get("style"), Mapping):
            config = {**config, "style": construct(BlockStyle, config["style"])}
        return from_plain(cls, config)

    def mirrored(self) -> "PyramidConfig":
        """The config of the decoder for an encoder of this config: one more block per level."""
        blocks = self.num_res_blocks
        more = blocks + 1 if isinstance(blocks, int) else tuple(number + 1 for number in blocks)
        return replace(self, num_res_blocks=more)

    @property
    def resamplings(self) -> int:
        """Number of levels that halve or double the size."""
        return len(self.widths) - 1 if self.num_resamplings is None else self.num_resamplings

    @property
    def stride(self) -> int:
        """Side length of one latent cell in pixels."""
        return 2 ** (self.resamplings + self.haar_rounds)

    def blocks_at(self, level: int) -> int:
        """Number of residual blocks of `level`."""
        return self.num_res_blocks if isinstance(self.num_res_blocks, int) else self.num_res_blocks[level]

    def has_attention(self, level: int) -> bool:
        """Whether attention follows the residual blocks of `level`."""
        levels = (len(self.widths) - 1,) if self.attention_levels is None else self.attention_levels
        return level in levels


class Level(nn.Module):
    """Layers of one resolution: an optional norm by the latent, residual and attention blocks, resampling."""

    def __init__(
        self,
        widths: tuple[int, int],
        config: PyramidConfig,
        *,
        num_blocks: int,
        attention: bool,
        resample: nn.Module | None,
        latent_channels: int | None = None,
    ):
        """
        Args:
            widths: channels of input and output.
            config: style of the blocks.
            num_blocks: number of residual blocks.
            attention: whether attention follows each residual block.
            resample: layer at the end that halves or doubles the size; None: no such layer.
            latent_channels: channels of z_q in a decoder; None in an encoder.
        """
        super().__init__()
        before, width = widths
        self.entry = None
        if config.adaptive and latent_channels is not None:
            self.entry = AdaptiveGroupNorm(before, latent_channels, config.style.norm_groups)
        self.blocks = nn.ModuleList(
            ResnetBlock(before if i == 0 else width, width, config.style, latent_channels) for i in range(num_blocks)
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(width, config.style, latent_channels) for _ in range(len(self.blocks) if attention else 0)
        )
        self.resample = resample

    def forward(self, x: Float[Tensor, "b c h w"], z_q: Tensor | None = None) -> Float[Tensor, "b d H W"]:
        """(B, C, H, W) to (B, C', H', W'); `resample` defines H' and W'."""
        if self.entry is not None:
            x = self.entry(x, z_q)
        for i, block in enumerate(self.blocks):
            x = block(x, z_q)
            if self.attentions:
                x = self.attentions[i](x, z_q)
        return x if self.resample is None else self.resample(x)


def make_mid(config: PyramidConfig, latent_channels: int | None = None) -> nn.ModuleList:
    """The blocks at the latent's resolution."""
    width = config.widths[-1]
    kinds = {
        "residual": lambda: ResnetBlock(width, width, config.style, latent_channels),
        "attention": lambda: AttentionBlock(width, config.style, latent_channels),
    }
    for kind in config.mid:
        if kind not in kinds:
            raise ValueError(f"mid: got {kind!r}, expected {' or '.join(kinds)}")
    return nn.ModuleList(kinds[kind]() for kind in config.mid)


def make_projection(config: PyramidConfig, before: int, after: int) -> nn.Module:
    """The convolution between latent_channels and embedding_dim ("quant_conv"), or the identity."""
    if config.projection == 0:
        if before != after:
            raise ValueError(f"projection: got 0 for {before} to {after} channels, expected an odd kernel size")
        return nn.Identity()
    return nn.Conv2d(before, after, kernel_size=config.projection, padding=config.projection // 2)


class PyramidEncoder(nn.Module):
    """Image (B, C, H, W) to latent (B, D, H / s, W / s); H and W are multiples of s."""

    def __init__(self, config: PyramidConfig, image_channels: int, embedding_dim: int):
        super().__init__()
        style, widths = config.style, config.widths
        stem_width = config.stem_width or widths[0]
        self.haar_rounds = config.haar_rounds
        channels = image_channels * 4**config.haar_rounds
        self.stem = nn.Conv2d(channels, stem_width, kernel_size=3, padding=1, bias=style.bias)
        self.levels = nn.ModuleList(
            Level(
                (before, width),
                config,
                num_blocks=config.blocks_at(i),
                attention=config.has_attention(i),
                resample=Downsample(width, downsample_kind(config.resample)) if i < config.resamplings else None,
            )
            for i, (before, width) in enumerate(pairwise((stem_width, *widths)))
        )
        self.mid = make_mid(config)
        self.norm_out = style.make_norm(widths[-1], None)
        self.conv_out = nn.Conv2d(
            widths[-1], config.latent_channels, kernel_size=config.latent_kernel, padding=config.latent_kernel // 2
        )
        self.projection = make_projection(config, config.latent_channels, embedding_dim)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hs ws"]:
        """(B, C, H, W) to (B, D, H / s, W / s)."""
        x = self.stem(haar(image, self.haar_rounds).contiguous(memory_format=torch.channels_last))
        for level in self.levels:
            x = level(x)
        for block in self.mid:
            x = block(x)
        return self.projection(self.conv_out(F.silu(self.norm_out(x), inplace=True)))


class PyramidDecoder(nn.Module):
    """Quantized latent (B, D, h, w) to image (B, C, h * s, w * s), not clamped. `levels` run from coarse to fine."""

    def __init__(self, config: PyramidConfig, image_channels: int, embedding_dim: int):
        super().__init__()
        widths, levels = config.widths, len(config.widths)
        self.haar_rounds, self.noise = config.haar_rounds, config.noise
        self.projection = make_projection(config, embedding_dim, config.latent_channels)
        channels = config.latent_channels + (embedding_dim if config.noise else 0)
        self.stem = nn.Conv2d(channels, widths[-1], kernel_size=3, padding=1)
        self.mid = make_mid(config, embedding_dim)
        self.levels = nn.ModuleList(
            Level(
                (widths[min(i + 1, levels - 1)], widths[i]),
                config,
                num_blocks=config.blocks_at(i),
                attention=config.has_attention(i),
                resample=Upsample(widths[i], upsample_kind(config.resample)) if ran < config.resamplings else None,
                latent_channels=embedding_dim,
            )
            for ran, i in enumerate(reversed(range(levels)))
        )
        self.norm_out = config.style.make_norm(widths[0], embedding_dim)
        self.conv_out = nn.Conv2d(widths[0], image_channels * 4**config.haar_rounds, kernel_size=3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, z_q: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        """(B, D, h, w) to (B, C, h * s, w * s)."""
        z_q = z_q.contiguous(memory_format=torch.channels_last)
        return self.from_features(self.projection(z_q), z_q)

    def from_features(self, h: Float[Tensor, "b l h w"], z_q: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        """The part after the projection: features (B, L, h, w) with L = latent_channels, and the latent for the norms
        (B, D, h, w), to (B, C, h * s, w * s)."""
        x = self.stem(torch.cat([h, torch.randn_like(z_q)], dim=1) if self.noise else h)
        for block in self.mid:
            x = block(x, z_q)
        for level in self.levels:
            x = level(x, z_q)
        return inverse_haar(self.conv_out(F.silu(self.norm_out(x, z_q), inplace=True)), self.haar_rounds)
