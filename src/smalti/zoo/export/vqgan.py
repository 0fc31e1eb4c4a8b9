"""Common parts of the publishers' formats: the sizes of a VQGAN that their code can build, and its tensors.

The name tables are those for reading published checkpoints (`zoo/published`), inverted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from smalti.blocks.pyramid import PyramidConfig
from smalti.checks import expect
from smalti.quantizers import Quantizer
from smalti.quantizers.vector import CodebookQuantizer, ZNormVectorQuantizer
from smalti.tokenizers import VQGAN, Tokenizer
from smalti.zoo.published.fitting import split_qkv
from smalti.zoo.published.names import NameTable

WITH_ATTENTION = ("residual", "attention", "residual")
"""The blocks in the middle of every VQGAN after taming's."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a VQGAN that publishers have options for. Levels count from fine to coarse."""

    stem_width: int
    """Channels after the encoder's first convolution."""
    widths: tuple[int, ...]
    """Channels at each level, in the encoder and in the decoder."""
    num_res_blocks: int
    """Residual blocks per level of the encoder; the decoder has one more."""
    attention_levels: tuple[tuple[int, ...], tuple[int, ...]]
    """Levels with attention in the encoder, and in the decoder."""
    mid: tuple[str, ...]
    """Blocks in the middle, equal in encoder and decoder."""
    latent_channels: int
    """Channels between networks and projection."""
    embedding_dim: int
    """Dimension of a code."""
    projection: int
    """Kernel size of the convolutions around the quantizer; 0: no convolutions."""
    image_channels: int
    """Channels of the images."""
    norm_groups: int
    """Groups of each group normalisation."""
    norm: str
    """Norms of the decoder: "group" or "spatial"."""
    image_range: tuple[float, float]
    """Value range of the images inside the networks."""

    @property
    def ch_mult(self) -> list[int]:
        """The widths as multiples of `stem_width`."""
        whole = all(width % self.stem_width == 0 for width in self.widths)
        expect(whole, "widths", self.widths, f"multiples of the first convolution's {self.stem_width} channels")
        return [width // self.stem_width for width in self.widths]

    def require(self, code: str, **expected: Any) -> None:
        """Refuse a size that the publisher's code does not have."""
        for name, value in expected.items():
            expect(getattr(self, name) == value, name, getattr(self, name), f"{value!r}, as in the code of {code}")


def sizes_of(tokenizer: Tokenizer, code: str) -> Sizes:
    """The sizes of a VQGAN whose networks are those of taming-transformers.

    Raises:
        ValueError: another tokenizer, or a variant that no publisher has an option for.
    """
    if not isinstance(tokenizer, VQGAN):
        raise ValueError(f"model: got a {type(tokenizer).__name__}, expected a VQGAN, the networks of {code}")
    config = tokenizer.config()
    for name in ("encoder_only", "unit_codes"):
        expect(not config[name], name, config[name], f"False, as in the code of {code}")
    encoder, decoder = PyramidConfig.of(config["encoder"]), PyramidConfig.of(config["decoder"])
    _check_networks(encoder, decoder, code)
    levels = range(len(encoder.widths))
    return Sizes(
        stem_width=encoder.stem_width or encoder.widths[0],
        widths=encoder.widths,
        num_res_blocks=encoder.blocks_at(0),
        attention_levels=(tuple(filter(encoder.has_attention, levels)), tuple(filter(decoder.has_attention, levels))),
        mid=encoder.mid,
        latent_channels=encoder.latent_channels,
        embedding_dim=tokenizer.quantizer.embedding_dim,
        projection=encoder.projection,
        image_channels=tokenizer.image_channels,
        norm_groups=encoder.style.norm_groups,
        norm=decoder.style.norm,
        image_range=tokenizer.image_range,
    )


def _check_networks(encoder: PyramidConfig, decoder: PyramidConfig, code: str) -> None:
    """Refuse settings that no publisher has an option for."""

    def usual(name: str, value: Any, expected: Any, why: str = f"as in the code of {code}") -> None:
        expect(value == expected, name, value, f"{expected!r}, {why}")

    for half, config in (("encoder", encoder), ("decoder", decoder)):
        usual(f"{half}.style.bias", config.style.bias, True)
        usual(f"{half}.style.shortcut", config.style.shortcut, "1x1")
        usual(f"{half}.style.num_heads", config.style.num_heads, 1)
        usual(f"{half}.resample", config.resample, "conv")
        usual(f"{half}.adaptive", config.adaptive, False)
        usual(f"{half}.haar_rounds", config.haar_rounds, 0)
        usual(f"{half}.noise", config.noise, False)
        usual(f"{half}.num_resamplings", config.resamplings, len(config.widths) - 1)
    usual("encoder.latent_kernel", encoder.latent_kernel, 3)
    usual("encoder.style.norm", encoder.style.norm, "group")
    blocks, levels = encoder.blocks_at(0), range(len(encoder.widths))
    usual("encoder.num_res_blocks", [encoder.blocks_at(level) for level in levels], [blocks] * len(levels))
    for name in ("widths", "mid", "latent_channels", "projection"):
        usual(f"decoder.{name}", getattr(decoder, name), getattr(encoder, name), "as in the encoder")
    usual("decoder.style.norm_groups", decoder.style.norm_groups, encoder.style.norm_groups, "as in the encoder")
    more = [decoder.blocks_at(level) for level in levels]
    usual("decoder.num_res_blocks", more, [blocks + 1] * len(levels), "one more than in the encoder")


def codebook(quantizer: Quantizer, code: str, metrics: Sequence[str]) -> tuple[Tensor, str]:
    """The codebook (K, D) as stored, and its metric: "euclidean", "cosine", "dot" or "znorm".

    Raises:
        ValueError: a quantizer without a codebook, or a metric that is not in `metrics`.
    """
    if not isinstance(quantizer, CodebookQuantizer):
        raise ValueError(f"quantizer: got {type(quantizer).__name__}, expected one codebook, as in the code of {code}")
    metric = "znorm" if isinstance(quantizer, ZNormVectorQuantizer) else quantizer.metric
    expect(metric in metrics, "metric", metric, f"{' or '.join(metrics)}, as in the code of {code}")
    return quantizer.table(), metric


def published_tensors(
    tokenizer: Tokenizer, quantizer: Mapping[str, Tensor], table: NameTable, *, split: bool = True
) -> dict[str, Tensor]:
    """The tensors of the networks and of the quantizer in fp32 under the publisher's names.

    Args:
        tokenizer: a VQGAN.
        quantizer: the quantizer's tensors in the publisher's format, by smalti's names.
        table: the publisher's names.
        split: whether queries, keys and values are three tensors.
    """
    networks = {name: value for name, value in tokenizer.named_parameters() if not name.startswith("quantizer.")}
    ours = networks | dict(quantizer)
    ours = split_qkv(ours) if split else ours
    names = table.invert(ours)
    # clone: otherwise each part of a split tensor would be saved with the whole tensor
    return {names[name]: value.detach().cpu().float().contiguous().clone() for name, value in ours.items()}
