"""Tensor names of taming-transformers, which most later projects also use."""

from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.names import NameTable

OUTER = {
    "encoder.conv_in": "encoder.stem",
    "encoder.norm_out": "encoder.norm_out",
    "encoder.conv_out": "encoder.conv_out",
    "quant_conv": "encoder.projection",
    "quantize.embedding": "quantizer.embedding",
    "post_quant_conv": "decoder.projection",
    "decoder.conv_in": "decoder.stem",
    "decoder.norm_out": "decoder.norm_out",
    "decoder.conv_out": "decoder.conv_out",
}
"""Modules outside the pyramid's levels."""

LEVELS = {
    "encoder.down.{i}.block.{j}": "encoder.levels.{i}.blocks.{j}",
    "encoder.down.{i}.attn.{j}": "encoder.levels.{i}.attentions.{j}",
    "encoder.down.{i}.downsample": "encoder.levels.{i}.resample",
    "decoder.up.{i}.block.{j}": "decoder.levels.{i}.blocks.{j}",
    "decoder.up.{i}.attn.{j}": "decoder.levels.{i}.attentions.{j}",
    "decoder.up.{i}.upsample": "decoder.levels.{i}.resample",
}
"""Modules of the levels."""

LEAVES = {"nin_shortcut": "shortcut", "conv_shortcut": "shortcut", "proj_out": "out"}
"""Names inside blocks."""


def mid_names(first: str, attention: str | None, last: str) -> dict[str, str]:
    """Names of the modules between levels and latent, in encoder and decoder.

    Args:
        first: the publisher's name of the first residual block, such as "mid.block_1".
        attention: the publisher's name of the attention block; None: no such block.
        last: the publisher's name of the second residual block.
    """
    kinds = [name for name in (first, attention, last) if name is not None]
    return {f"{half}.{name}": f"{half}.mid.{i}" for half in ("encoder", "decoder") for i, name in enumerate(kinds)}


def taming_names(candidate: Candidate) -> NameTable:
    """Names of taming-transformers; without attention in the middle if the checkpoint has none (vq-f4-noattn)."""
    return taming_table(any(".mid.attn_1." in name for name in candidate.tensors))


def taming_table(attention: bool = True) -> NameTable:
    """Names of taming-transformers, with or without attention in the middle."""
    mid = mid_names("mid.block_1", "mid.attn_1" if attention else None, "mid.block_2")
    return NameTable({**OUTER, **LEVELS, **mid}, LEAVES)
