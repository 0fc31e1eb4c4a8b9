"""Published priors, loaded by one line: VAR d16 to d36 and LlamaGen's class-conditional transformers.

    tokenizer = load_published("vae_ch160v4096z32.pth")
    prior = load_published_prior("var_d16.pth", tokenizer)

Sizes are inferred from the tensors; what cannot be inferred has the published value by default and is an option. The
scales of tokenizer and prior must agree, or nothing is loaded.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.ops import proportional_grids
from smalti.priors import (
    NextScaleConfig,
    NextScaleTransformer,
    NextTokenConfig,
    NextTokenTransformer,
    Prior,
    TokenLayout,
)
from smalti.quantizers import MultiScaleQuantizer, quantizer_from_config
from smalti.tokenizers import Tokenizer
from smalti.zoo.published.checkpoints import Candidate, read_checkpoint
from smalti.zoo.published.fitting import compare, expected_shapes, load_into
from smalti.zoo.published.names import NameTable

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class PriorFamily:
    """One publisher's priors."""

    title: str
    """Name for people."""
    mark: str
    """A tensor that only this family has."""
    names: NameTable
    """Their tensor names and ours."""
    derived: tuple[str, ...]
    """Tensors that are computed from others and not loaded (ends of names)."""
    build: Callable[..., Prior]
    """`build(tensors under their names, tokenizer, **options)`: a model of the checkpoint's sizes."""


def load_published_prior(path: str | Path, tokenizer: Tokenizer, family: str | None = None, **options: Any) -> Prior:
    """A published prior from its publisher's checkpoint, in eval mode, weights in fp32.

    >>> prior = load_published_prior("var_d16.pth", tokenizer)  # doctest: +SKIP
    >>> tokens = prior.sample(torch.tensor([207]))  # doctest: +SKIP

    Args:
        path: a .pth .pt .ckpt .bin or .safetensors file.
        tokenizer: the tokenizer that it was trained on.
        family: a key of `PRIOR_FAMILIES`; None: recognised by the tensor names.
        options: what cannot be inferred: `patch_nums` (VAR), `grid` (LlamaGen), `num_heads`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no family fits, the tokenizer has another vocabulary or other scales, or tensors do not fit.
    """
    checkpoint = read_checkpoint(path)
    if family is not None and family not in PRIOR_FAMILIES:
        raise ValueError(f"family: got {family!r}, expected one of {', '.join(PRIOR_FAMILIES)}")
    rows = [PRIOR_FAMILIES[family]] if family else PRIOR_FAMILIES.values()
    for row in rows:
        for candidate in checkpoint.candidates:
            if row.mark in candidate.tensors:
                return _load(checkpoint.path, row, candidate, tokenizer, options)
    some = ", ".join(list(checkpoint.candidates[0].tensors)[:10])
    raise ValueError(f"checkpoint: {checkpoint.path} is no prior of {', '.join(PRIOR_FAMILIES)}; it has {some}")


def _load(
    path: Path, family: PriorFamily, candidate: Candidate, tokenizer: Tokenizer, options: Mapping[str, Any]
) -> Prior:
    theirs = {name: t for name, t in candidate.tensors.items() if not name.endswith(family.derived)}
    try:
        prior = family.build(candidate.tensors, tokenizer, **options)
    except (TypeError, KeyError) as error:
        raise ValueError(f"checkpoint: {path} as {family.title}: {error}") from error
    expected = {
        name: shape
        for name, shape in expected_shapes(prior, split_qkv=False).items()
        if not name.startswith("quantizer.")
    }
    ours = family.names.translate(theirs)
    # Publishers keep axes of length 1 that broadcast; ours have none / 发布的张量带有长度为 1 的广播轴
    tensors = {ours.get(name, name): tensor for name, tensor in theirs.items()}
    tensors = {
        name: tensor.reshape(expected[name])
        if name in expected and tensor.numel() == math.prod(expected[name])
        else tensor
        for name, tensor in tensors.items()
    }
    originals = {name: family.names.original(name, 0) for name in expected}
    if difference := compare(expected, tensors, originals):
        raise ValueError(f"checkpoint: {path} as {family.title}: {difference}")
    load_into(prior, tensors)
    return prior.eval()


# ---- VAR ------------------------------------------------------------------------------------------------------------

VAR_NAMES = NameTable(
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


def build_var(
    tensors: Tensors, tokenizer: Tokenizer, *, patch_nums: tuple[int, ...] | None = None, num_heads: int | None = None
) -> Prior:
    """A next-scale transformer of the checkpoint's sizes, on a copy of the tokenizer's quantizer."""
    quantizer = tokenizer.quantizer
    if not isinstance(quantizer, MultiScaleQuantizer):
        raise ValueError(f"tokenizer: VAR needs a multi-scale one, this has a {type(quantizer).__name__}")
    width = tensors["word_embed.weight"].shape[0]
    temperatures = tensors.get("blocks.0.attn.scale_mul_1H11")
    sides = tuple(patch_nums or _sides(tensors) or quantizer.patch_nums)
    own = replace(_square_layout(tokenizer, sides), vocab_size=tensors["head.weight"].shape[0])
    own.require(_square_layout(tokenizer, quantizer.patch_nums), "tokenizer")
    config = NextScaleConfig(
        depth=_depth(tensors, "blocks"),
        width=width,
        num_heads=num_heads or (width // 64 if temperatures is None else temperatures.numel()),
        mlp_ratio=tensors["blocks.0.ffn.fc1.weight"].shape[0] / width,
        l2_attention=temperatures is not None,
        shared_adaln="blocks.0.ada_gss" in tensors,
    )
    copied = quantizer_from_config(quantizer.config())
    assert isinstance(copied, MultiScaleQuantizer)
    copied.load_state_dict(quantizer.state_dict())
    return NextScaleTransformer(own, tensors["class_emb.weight"].shape[0] - 1, copied, config)


def _sides(tensors: Tensors) -> tuple[int, ...] | None:
    """Sides of the scales, from the table of levels that VAR saves; None where it is missing."""
    levels = tensors.get("lvl_1L")
    return None if levels is None else tuple(isqrt(int(n)) for n in torch.bincount(levels.flatten().long()))


def _square_layout(tokenizer: Tokenizer, patch_nums: tuple[int, ...]) -> TokenLayout:
    side = patch_nums[-1]
    pixels = (side * tokenizer.stride,) * 2
    return TokenLayout(tokenizer.vocab_size, proportional_grids(patch_nums, side, side), pixels, tokenizer.fingerprint)


# ---- LlamaGen -------------------------------------------------------------------------------------------------------

LLAMAGEN_NAMES = NameTable(
    {
        "cls_embedding.embedding_table": "class_embedding",
        "tok_embeddings": "word_embedding",
        "layers.{i}.attention.wqkv": "blocks.{i}.attention.qkv",
        "layers.{i}.attention.wo": "blocks.{i}.attention.out",
        "layers.{i}.feed_forward.w1": "blocks.{i}.mlp.gate",
        "layers.{i}.feed_forward.w3": "blocks.{i}.mlp.up",
        "layers.{i}.feed_forward.w2": "blocks.{i}.mlp.down",
        "layers.{i}.attention_norm": "blocks.{i}.norm1",
        "layers.{i}.ffn_norm": "blocks.{i}.norm2",
        "norm": "norm",
        "output": "head",
    },
    {},
)
LLAMAGEN_3B_WIDTH, LLAMAGEN_3B_HEADS = 3200, 32
"""The one published size whose heads have 100 components instead of 64."""


def build_llamagen(
    tensors: Tensors,
    tokenizer: Tokenizer,
    *,
    grid: tuple[int, int] = (16, 16),
    num_heads: int | None = None,
    rope_base: float = 10000.0,
) -> Prior:
    """A next-token transformer of the checkpoint's sizes."""
    vocab_size, width = tensors["tok_embeddings.weight"].shape
    heads = num_heads or (LLAMAGEN_3B_HEADS if width == LLAMAGEN_3B_WIDTH else max(1, width // 64))
    head_dim = width // heads
    config = NextTokenConfig(
        depth=_depth(tensors, "layers"),
        width=width,
        num_heads=heads,
        num_kv_heads=(tensors["layers.0.attention.wqkv.weight"].shape[0] // head_dim - heads) // 2,
        hidden=tensors["layers.0.feed_forward.w1.weight"].shape[0],
        rope_base=rope_base,
    )
    pixels = (grid[0] * tokenizer.stride, grid[1] * tokenizer.stride)
    layout = TokenLayout.of(vocab_size, [grid], pixels, tokenizer.fingerprint)
    layout.require(replace(layout, vocab_size=tokenizer.vocab_size), "tokenizer")
    return NextTokenTransformer(layout, tensors["cls_embedding.embedding_table.weight"].shape[0] - 1, config)


def _depth(tensors: Tensors, blocks: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith(blocks + "."))


PRIOR_FAMILIES: dict[str, PriorFamily] = {
    "var": PriorFamily(
        title="VAR",
        mark="pos_1LC",
        names=VAR_NAMES,
        derived=("lvl_1L", "attn_bias_for_masking", "zero_k_bias"),
        build=build_var,
    ),
    "llamagen": PriorFamily(
        title="LlamaGen",
        mark="tok_embeddings.weight",
        names=LLAMAGEN_NAMES,
        derived=("freqs_cis",),
        build=build_llamagen,
    ),
}
"""Families by name."""
