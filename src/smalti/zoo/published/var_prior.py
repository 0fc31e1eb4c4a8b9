"""VAR's next-scale transformers, d16 to d36.

Source: Tian et al. 2024, "Visual Autoregressive Modeling" (arXiv 2404.02905). Their tokenizer is that of `var.py` and
must have the same scales.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt, prod
from typing import Any

import torch

from smalti.ops import proportional_grids
from smalti.priors import NextScaleConfig, NextScaleTransformer, TokenLayout
from smalti.quantizers import MultiScaleQuantizer, quantizer_from_config
from smalti.tokenizers import Tokenizer
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, has
from smalti.zoo.published.inference import Shapes, any_name, count, vote
from smalti.zoo.published.names import NameTable

NAMES = NameTable(
    {
        "class_emb": "class_embedding",
        "pos_start": "start",
        "word_embed": "word_embedding",
        "pos_1LC": "positions",
        "lvl_embed": "level_embedding",
        "shared_ada_lin.1": "shared_modulation",
        "blocks.{i}.attn.mat_qkv": "blocks.{i}.attention.qkv",
        "blocks.{i}.attn.q_bias": "blocks.{i}.attention.q_bias",
        "blocks.{i}.attn.v_bias": "blocks.{i}.attention.v_bias",
        "blocks.{i}.attn.scale_mul_1H11": "blocks.{i}.attention.log_temperature",
        "blocks.{i}.attn.proj": "blocks.{i}.attention.out",
        "blocks.{i}.ffn.fc1": "blocks.{i}.mlp.up",
        "blocks.{i}.ffn.fc2": "blocks.{i}.mlp.down",
        "blocks.{i}.ada_lin.1": "blocks.{i}.modulation",
        "blocks.{i}.ada_gss": "blocks.{i}.offsets",
        "head_nm.ada_lin.1": "head_modulation",
        "head": "head",
    },
    {},
)


def facts(candidate: Candidate) -> dict[str, Any]:
    """Side lengths of the scales, from VAR's table of levels if the file has it."""
    levels = candidate.tensors.get("lvl_1L")
    if levels is None:
        return {}
    return {"patch_nums": tuple(isqrt(int(length)) for length in torch.bincount(levels.flatten().long()))}


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    tokenizer: Tokenizer,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
) -> NextScaleTransformer:
    """A next-scale transformer of the checkpoint's sizes, with a copy of the tokenizer's quantizer."""
    quantizer = tokenizer.quantizer
    if not isinstance(quantizer, MultiScaleQuantizer):
        raise ValueError(f"tokenizer: got a {type(quantizer).__name__}, expected a multi-scale quantizer for VAR")
    width = vote(shapes, (r"word_embedding\.(weight|bias)", 0), default=64)
    vocab_size = vote(shapes, (r"head\.(weight|bias)", 0), default=tokenizer.vocab_size)
    own = replace(_square_layout(tokenizer, patch_nums or quantizer.patch_nums), vocab_size=vocab_size)
    own.require(_square_layout(tokenizer, quantizer.patch_nums), "tokenizer")
    temperatures = next((shape for name, shape in shapes.items() if name.endswith(".log_temperature")), None)
    sizes = NextScaleConfig(
        depth=max(1, count(shapes, r"blocks\.(\d+)\.")),
        width=width,
        num_heads=num_heads or (width // 64 if temperatures is None else prod(temperatures)),
        mlp_ratio=vote(shapes, (r"blocks\.\d+\.mlp\.up\.(weight|bias)", 0), default=4 * width) / width,
        l2_attention=temperatures is not None,
        shared_adaln=any_name(shapes, r"blocks\.\d+\.offsets$"),
    )
    copied = quantizer_from_config(quantizer.config())
    assert isinstance(copied, MultiScaleQuantizer)
    copied.load_state_dict(quantizer.state_dict())
    classes = vote(shapes, (r"class_embedding\.weight", 0), default=2) - 1
    return NextScaleTransformer(own, classes, copied, sizes)


def _square_layout(tokenizer: Tokenizer, patch_nums: Sequence[int]) -> TokenLayout:
    side = patch_nums[-1]
    pixels = (side * tokenizer.stride,) * 2
    return TokenLayout(tokenizer.vocab_size, proportional_grids(patch_nums, side, side), pixels, tokenizer.fingerprint)


FAMILY = Family(
    title="VAR",
    url="https://github.com/FoundationVision/VAR",
    licence="MIT",
    names=lambda candidate: NAMES,
    recognises=lambda candidate: has(candidate, "pos_1LC$"),
    build=build,
    facts=facts,
    ignored=r"lvl_1L$|attn_bias_for_masking$|blocks\.\d+\.attn\.zero_k_bias$",
    supplied=r"quantizer\.",
)
