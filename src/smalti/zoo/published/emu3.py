"""Emu3's VQ-VAE in the format of transformers, for images: an image is a video of equal frames.

Source: Wang et al. 2024, Emu3 (arXiv 2409.18869). taming's encoder, MoVQ's decoder, and convolutions over time
between them and the codebook. Videos are not supported.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smalti.ops.nearest import Metric
from smalti.tokenizers import Emu3VQ
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, codebook, has
from smalti.zoo.published.inference import Shapes, count, infer_pyramid, vote
from smalti.zoo.published.names import NameTable

MODULES = {
    "encoder.conv_in": "encoder.pyramid.stem",
    "encoder.norm_out": "encoder.pyramid.norm_out",
    "encoder.conv_out": "encoder.pyramid.conv_out",
    "encoder.down_block.down.{i}.block.{j}": "encoder.pyramid.levels.{i}.blocks.{j}",
    "encoder.down_block.down.{i}.attn_norms.{j}": "encoder.pyramid.levels.{i}.attentions.{j}.norm",
    "encoder.down_block.down.{i}.attn.{j}": "encoder.pyramid.levels.{i}.attentions.{j}",
    "encoder.down_block.down.{i}.downsample": "encoder.pyramid.levels.{i}.resample",
    "encoder.time_conv.{i}.conv": "encoder.halvings.{i}",
    "encoder.time_res_stack.{i}": "encoder.blocks.{i}",
    "quant_conv": "encoder.projection",
    "quantize.embedding": "quantizer.embedding",
    "post_quant_conv": "decoder.projection",
    "decoder.time_res_stack.{i}": "decoder.blocks.{i}",
    "decoder.time_conv.{i}.conv": "decoder.doublings.{i}",
    "decoder.conv_in": "decoder.pyramid.stem",
    "decoder.norm_out": "decoder.pyramid.norm_out",
    "decoder.conv_out": "decoder.pyramid.conv_out",
    "decoder.up_block.up.{i}.block.{j}": "decoder.pyramid.levels.{i}.blocks.{j}",
    "decoder.up_block.up.{i}.attn_norms.{j}": "decoder.pyramid.levels.{i}.attentions.{j}.norm",
    "decoder.up_block.up.{i}.attn.{j}": "decoder.pyramid.levels.{i}.attentions.{j}",
    "decoder.up_block.up.{i}.upsample": "decoder.pyramid.levels.{i}.resample",
    **{
        f"{half}.middle_block.{theirs}": f"{half}.pyramid.mid.{ours}"
        for half in ("encoder", "decoder")
        for theirs, ours in (("block_1", "0"), ("attn_norm", "1.norm"), ("attn_1", "1"), ("block_2", "2"))
    },
}

LEAVES = {
    "nin_shortcut": "shortcut",
    "norm_layer": "norm",
    "conv_y": "scale",
    "conv_b": "shift",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "out_proj": "out",
}

NAMES = NameTable(MODULES, LEAVES)


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    num_heads: int | None = None,
    metric: Metric = "euclidean",
    image_range: Sequence[float] = (-1.0, 1.0),
) -> Emu3VQ:
    """An Emu3 tokenizer of the checkpoint's sizes."""
    style = {"num_heads": num_heads or int(config.get("num_attention_heads", 1))}
    return Emu3VQ(
        infer_pyramid(shapes, "encoder.pyramid", **style),
        codebook(shapes, metric),
        infer_pyramid(shapes, "decoder.pyramid", **style),
        time_halvings=count(shapes, r"encoder\.halvings\.(\d+)\."),
        time_blocks=count(shapes, r"encoder\.blocks\.(\d+)\."),
        image_channels=vote(shapes, (r"encoder\.pyramid\.stem\.weight", 1), default=3),
        image_range=image_range,
        source=source,
    )


def recognises(candidate: Candidate) -> bool:
    """Levels called down_block.down, or convolutions over time."""
    return has(candidate, r"encoder\.(down_block\.down|time_conv|time_res_stack)\.")


FAMILY = Family(
    title="Emu3 VQ-VAE (transformers)",
    url="https://huggingface.co/BAAI/Emu3-Chat-hf",
    licence="Apache-2.0",
    names=lambda candidate: NAMES,
    recognises=recognises,
    build=build,
)
