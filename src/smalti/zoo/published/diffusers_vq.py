"""The `VQModel` of diffusers: aMUSEd, Kandinsky's MoVQ with its spatial norm, and converted latent-diffusion models.

Source: Patil et al. 2024, aMUSEd (arXiv 2401.01808); Zheng et al. 2022, MoVQ (arXiv 2209.09002). taming's networks
under diffusers' names, old ("query") and new ("to_q"). Settings that the tensors do not show are read from the
config.json beside the weights.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from smalti.ops.nearest import Metric
from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, build_vqgan, codebook, has
from smalti.zoo.published.inference import Shapes
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import OUTER, mid_names

LEVELS = {
    "encoder.down_blocks.{i}.resnets.{j}": "encoder.levels.{i}.blocks.{j}",
    "encoder.down_blocks.{i}.attentions.{j}": "encoder.levels.{i}.attentions.{j}",
    "encoder.down_blocks.{i}.downsamplers.0": "encoder.levels.{i}.resample",
    "decoder.up_blocks.{i}.resnets.{j}": "decoder.levels.{i}.blocks.{j}",
    "decoder.up_blocks.{i}.attentions.{j}": "decoder.levels.{i}.attentions.{j}",
    "decoder.up_blocks.{i}.upsamplers.0": "decoder.levels.{i}.resample",
    "encoder.conv_norm_out": "encoder.norm_out",
    "decoder.conv_norm_out.norm_layer": "decoder.norm_out.norm",
    "decoder.conv_norm_out": "decoder.norm_out",
}

LEAVES = {
    "conv_shortcut": "shortcut",
    "norm1.norm_layer": "norm1.norm",
    "norm2.norm_layer": "norm2.norm",
    "spatial_norm.norm_layer": "norm.norm",
    "spatial_norm.conv_y": "norm.scale",
    "spatial_norm.conv_b": "norm.shift",
    "group_norm": "norm",
    "conv_y": "scale",
    "conv_b": "shift",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "out",
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "out",
}
"""Names inside blocks. If several translate to one name of smalti, the first is the one that diffusers writes now."""

AMUSED = {"num_vq_embeddings": 8192, "vq_embed_dim": 64, "lookup_from_codebook": True}
"""Settings by which aMUSEd's weights are recognised. They take images in [0, 1]; all others take [-1, 1]."""


def names(candidate: Candidate) -> NameTable:
    """diffusers' names; without attention in the middle if the checkpoint has none (aMUSEd)."""
    return table(has(candidate, r".*\.mid_block\.attentions\."))


def table(attention: bool) -> NameTable:
    """diffusers' names, with or without attention in the middle."""
    mid = mid_names("mid_block.resnets.0", "mid_block.attentions.0" if attention else None, "mid_block.resnets.1")
    return NameTable({**LEVELS, **OUTER, **mid}, LEAVES, fine_to_coarse=False)


def with_linear_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under diffusers' names, with linear layers in attention. smalti has 1x1 convolutions there; on reading,
    `fitting.reshaped` converts them."""
    linear = re.compile(r".*\.to_(q|k|v|out\.0)\.weight")
    return {name: tensor.flatten(1) if linear.fullmatch(name) else tensor for name, tensor in tensors.items()}


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    metric: Metric = "euclidean",
    image_range: Sequence[float] | None = None,
    norm_groups: int | None = None,
) -> VQGAN:
    """A VQGAN of the checkpoint's sizes."""
    if config.get("act_fn", "silu") not in ("silu", "swish"):
        raise ValueError(f"act_fn: got {config['act_fn']!r} in config.json, expected 'silu'")
    if image_range is None:
        image_range = (0.0, 1.0) if all(config.get(key) == value for key, value in AMUSED.items()) else (-1.0, 1.0)
    groups = norm_groups or int(config.get("norm_num_groups", 32))
    return build_vqgan(shapes, source, codebook(shapes, metric), image_range=image_range, norm_groups=groups)


def recognises(candidate: Candidate) -> bool:
    """Levels called down_blocks and up_blocks, and a codebook."""
    return has(candidate, r"encoder\.down_blocks\.") and has(candidate, r"quantize\.")


FAMILY = Family(
    title="diffusers VQModel",
    url="https://github.com/huggingface/diffusers",
    licence="as the model's page states: aMUSEd OpenRAIL++, Kandinsky 2.2 Apache-2.0",
    names=names,
    recognises=recognises,
    build=build,
)
