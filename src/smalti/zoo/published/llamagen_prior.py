"""LlamaGen's class-conditional transformers, B to 3B.

Source: Sun et al. 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (arXiv
2406.06525). Their tokenizers are those of `llamagen.py`. Position embeddings are rotary, so no weight depends on the
token grid. The published files do not tell whether a model was trained on 16 x 16 or on 24 x 24 tokens, so users must.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from smalti.priors import NextTokenConfig, NextTokenTransformer, TokenLayout
from smalti.tokenizers import Tokenizer
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, has
from smalti.zoo.published.inference import Shapes, count, vote
from smalti.zoo.published.names import NameTable

NAMES = NameTable(
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
WIDTH_3B, HEADS_3B = 3200, 32
"""The only published size with 100 dimensions per head instead of 64."""


def facts(candidate: Candidate) -> dict[str, Any]:
    """The side of the square token grid, if the file has the rotary table: one row for the class, one per token."""
    table = candidate.tensors.get("freqs_cis")
    tokens = 0 if table is None else len(table) - 1
    return {"grid": (isqrt(tokens),) * 2} if tokens > 0 and isqrt(tokens) ** 2 == tokens else {}


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    tokenizer: Tokenizer,
    grid: tuple[int, int] | None = None,
    num_heads: int | None = None,
    rope_base: float = 10000.0,
) -> NextTokenTransformer:
    """A next-token transformer of the checkpoint's sizes."""
    if grid is None:
        raise ValueError(
            "grid: got none, expected [16, 16] for a model of 256 pixels, [24, 24] for 384, [32, 32] for 512; the file "
            "does not contain it"
        )
    vocab_size = vote(shapes, (r"(word_embedding|head)\.weight", 0), default=tokenizer.vocab_size)
    width = vote(shapes, (r"(word_embedding|head)\.weight", 1), default=64)
    heads = num_heads or (HEADS_3B if width == WIDTH_3B else max(1, width // 64))
    qkv = vote(shapes, (r"blocks\.\d+\.attention\.qkv\.weight", 0), default=3 * width)
    sizes = NextTokenConfig(
        depth=max(1, count(shapes, r"blocks\.(\d+)\.")),
        width=width,
        num_heads=heads,
        num_kv_heads=(qkv // (width // heads) - heads) // 2,
        hidden=vote(shapes, (r"blocks\.\d+\.mlp\.(gate|up)\.weight", 0), default=0),
        rope_base=rope_base,
    )
    pixels = (grid[0] * tokenizer.stride, grid[1] * tokenizer.stride)
    layout = TokenLayout.of(vocab_size, [grid], pixels, tokenizer.fingerprint)
    layout.require(replace(layout, vocab_size=tokenizer.vocab_size), "tokenizer")
    classes = vote(shapes, (r"class_embedding\.weight", 0), default=2) - 1
    return NextTokenTransformer(layout, classes, sizes)


FAMILY = Family(
    title="LlamaGen",
    url="https://github.com/FoundationVision/LlamaGen",
    licence="MIT",
    names=lambda candidate: NAMES,
    recognises=lambda candidate: has(candidate, r"tok_embeddings\.weight$"),
    build=build,
    facts=facts,
    ignored=r"freqs_cis$",
)
