"""Sampling side by side: ours as `smalti sample` does it, its matrix products alone, and a plain cached loop.

    python benchmarks/sampling.py [--rounds 3] [--only var-d16-1] [--out benchmarks/sampling.json]

Priors of published sizes with random weights, 256 pixels, guidance 1.5, no top-k or top-p (the defaults): VAR-d16 (680
tokens in ten scales, 4096 codes) and LlamaGen-B (256 tokens, 16384 codes). The contestants, each in fp32 and, where the
hardware multiplies it, in bf16:

- smalti: `Prior.sample` after `Prior.cast`. `smalti sample` takes bf16 where it can, so that is the default here.
- products: every matrix product of the same run and nothing else, in the same shapes and number format, on random
  numbers: the linear layers without their biases and activations, and attention over the filled part of a cache.
- plain: the sampling loop as people write it, in eager PyTorch: guidance in one batch, keys and values joined by
  `torch.cat`, `torch.multinomial`; VAR's modulations in every block and scale, LlamaGen's RMSNorm and rotary positions
  from elementary operations, both as published.

Each format is a race of its own, in which a round times all three, taking turns; a row has the median seconds and the
median over the rounds of the ratios. What follows the prior, the decoder, is timed apart, and so are top-k and top-p,
on random logits for all tokens of the run.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from plain_sampling import PlainGPT, PlainVAR
from report import Terms, beginning, facts, measure_rows
from torch import Tensor

from smalti.jobs.sample import to_tokens
from smalti.ops.device import choose_dtype
from smalti.ops.linear import linear
from smalti.priors import NextScaleTransformer, NextTokenTransformer, Prior, SamplingConfig, TokenLayout
from smalti.priors.cache import KeyValueCache
from smalti.priors.sampling import draw
from smalti.quantizers import MultiScaleQuantizer
from smalti.tokenizers import Tokenizer
from smalti.zoo import build, build_prior

THREADS = 2
SETTINGS = SamplingConfig()
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS = {
    "var-d16-1": ("var-d16", "var-f16", 1),
    "var-d16-4": ("var-d16", "var-f16", 4),
    "llamagen-b-1": ("llamagen-b", "llamagen-f16", 1),
    "llamagen-b-4": ("llamagen-b", "llamagen-f16", 4),
}
"""Name → prior, tokenizer, images at once."""
NOTES = """\
Bars: ours / products at most 1.3, plain / ours at least 1.3, in the default format.
On 2026-11-24 VAR and LlamaGen met both; LlamaGen in two runs with 0.94 to 1.02 and 1.34 to 1.43.

- Cache: 2 · blocks · images · 2 (guidance) · tokens · width numbers of the format, allocated once; the bytes of the
  tensor equal this formula (the benchmark and a test compare them).
- What lies between ours and the products: the cache's first writes, layer norms and modulations or RMSNorm and rotary
  positions, softmax and drawing. In fp32 the products are slow enough to hide nearly all of it, in the plain loop too:
  there is little left to win, and what wins against plain fp32 code is the number format.
- LlamaGen multiplies few rows many times. PyTorch rearranges bf16 weights in each of these products, those of
  `products` and `plain` here too; smalti does it once a call of `sample`, which is part of its time (0.05 s). For as
  long as the call lasts the weights are held twice: 0.2 GB more for LlamaGen-B in bf16. In fp32 it does so from four
  rows on; for fewer, PyTorch leaves the weights as they are. In VAR's ten passes rearranging takes most of what it
  saves.
- Products on rearranged weights, once more alone: 2.6 s for one image, 3.3 s for four; ours took 1.5 times and 1.4
  times as long as these. What remains are many small operations, which take longer between products than alone,
  probably as weights have filled the caches: the RMSNorms 1.6 ms of 14 ms a token, called in a row 0.3 ms.
- LlamaGen's step has a static cache and is not compiled. `torch.compile` of all of a block but its attention, with
  inductor's freezing, took 18.3 ms a token against 15.0 ms on rearranged weights, after 10 s of compiling.
"""

Call = Callable[[], object]


def make_prior(prior: str, tokenizer: Tokenizer) -> Prior:
    """Of the published size, for 256 pixels and a thousand classes."""
    torch.manual_seed(0)
    scales = isinstance(tokenizer.quantizer, MultiScaleQuantizer)
    sides = tokenizer.quantizer.patch_nums if scales else (16,)
    layout = TokenLayout.of(tokenizer.vocab_size, [(side, side) for side in sides], (256, 256))
    return build_prior(prior, layout, 1000, tokenizer.quantizer).eval()


# ---- contestants ----------------------------------------------------------------------------------------------------


def ours(prior: Prior, images: int) -> Call:
    """What `smalti sample` calls."""
    device = prior.head.weight.device
    labels = torch.arange(images, device=device)
    return lambda: prior.sample(labels, SETTINGS, generator=torch.Generator(device).manual_seed(0))


def plain(prior: Prior, images: int, dtype: torch.dtype) -> Call:
    """The straightforward loop on a network of the same sizes."""
    network = PlainVAR(prior) if isinstance(prior, NextScaleTransformer) else PlainGPT(prior)
    network = network.eval().to(dtype)
    return lambda: network.sample(torch.arange(images), SETTINGS.guidance)


def products(prior: Prior, images: int, dtype: torch.dtype) -> Call:
    """The matrix products of one run."""
    rows = 2 * images  # guidance
    cache = torch.randn(prior.settings.depth, 2, rows, prior.settings.num_heads, prior.layout.num_tokens, 64).to(dtype)
    if isinstance(prior, NextScaleTransformer):
        return lambda: next_scale_products(prior, rows, cache)
    return lambda: next_token_products(prior, rows, cache)


def inputs(rows: int, tokens: int, width: int, like: Tensor) -> Tensor:
    """Random numbers for a layer."""
    return torch.randn(rows, tokens, width).to(like.dtype)


def next_scale_products(prior: NextScaleTransformer, rows: int, cache: Tensor) -> None:
    """Class → modulations once; at each scale words, four layers and attention a block, and the logits."""
    width, blocks = prior.settings.width, prior._layers()
    condition = inputs(rows, 1, width, cache)
    for block in blocks:
        linear(condition, block.modulation.weight, None)
    for (start, end), n in zip(prior.layout.spans, prior.layout.scale_lengths, strict=True):
        x, hidden = inputs(rows, n, width, cache), inputs(rows, n, 4 * width, cache)
        q = x.unflatten(2, (-1, 64)).transpose(1, 2)
        for block, (keys, values) in zip(blocks, cache, strict=True):
            linear(x, block.attention.qkv.weight, None)
            F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], scale=1.0)
            linear(x, block.attention.out.weight, None)
            linear(x, block.mlp.up.weight, None)
            linear(hidden, block.mlp.down.weight, None)
        linear(condition, prior.head_modulation.weight, None)
        linear(x, prior.head.weight, None)
        if start:
            F.linear(x[: rows // 2, :, : prior.quantizer.embedding_dim], prior.word_embedding.weight)


def next_token_products(prior: NextTokenTransformer, rows: int, cache: Tensor) -> None:
    """For each token five layers and attention a block, and the logits."""
    settings = prior.settings
    x, hidden = inputs(rows, 1, settings.width, cache), inputs(rows, 1, settings.mlp_width, cache)
    q = x.unflatten(2, (-1, 64)).transpose(1, 2)
    for end in range(1, prior.layout.num_tokens + 1):
        for block, (keys, values) in zip(prior.blocks, cache, strict=True):
            F.linear(x, block.attention.qkv.weight)
            F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])
            F.linear(x, block.attention.out.weight)
            F.linear(x, block.mlp.gate.weight)
            F.linear(x, block.mlp.up.weight)
            F.linear(hidden, block.mlp.down.weight)
        F.linear(x, prior.head.weight)


# ---- measuring ------------------------------------------------------------------------------------------------------


def seconds(call: Call) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cut_seconds(layout: TokenLayout, images: int) -> dict[str, float]:
    """Drawing all tokens of a run, without and with the usual cuts."""
    logits = torch.randn(images, layout.num_tokens, layout.vocab_size)
    cuts = {"plain": SETTINGS, "top_k 900": SamplingConfig(top_k=900), "top_p 0.95": SamplingConfig(top_p=0.95)}
    return {name: round(min(seconds(lambda c=c: draw(logits, c)) for _ in range(2)), 3) for name, c in cuts.items()}


def race(prior: Prior, images: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, in the number format of the prior."""
    dtype = prior.head.weight.dtype
    calls = {
        "smalti": ours(prior, images),
        "products": products(prior, images, dtype),
        "plain": plain(prior, images, dtype),
    }
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {who: [] for who in calls}
    for _ in range(rounds):
        for who, call in calls.items():
            times[who].append(seconds(call))
    return times


@torch.no_grad()
def compare(row: str, rounds: int) -> dict:
    """A race in fp32 and one in the default format, if that is another."""
    name, tokenizer_name, images = ROWS[row]
    tokenizer = build(tokenizer_name).eval()
    default = choose_dtype("auto", torch.device("cpu"))
    result: dict = {"row": row, "images": images, "formats": {}}
    for label, dtype in FORMATS.items():
        if dtype not in (torch.float32, default):
            continue
        prior = make_prior(name, tokenizer)
        prior.cast(dtype)
        times = race(prior, images, rounds)

        def ratio(a: str, b: str, times: dict[str, list[float]] = times) -> float:
            return round(statistics.median(x / y for x, y in zip(times[a], times[b], strict=True)), 2)

        cache, sizes = prior._cache(2 * images), prior.settings
        formula = KeyValueCache.bytes(sizes.depth, 2 * images, prior.layout.num_tokens, sizes.width, dtype)
        assert cache.nbytes == formula
        result["formats"][label] = {
            "default": dtype == default,
            "images_per_second": round(images / statistics.median(times["smalti"]), 2),
            **{f"{who}_seconds": round(statistics.median(values), 3) for who, values in times.items()},
            "ours_over_products": ratio("smalti", "products"),
            "plain_over_ours": ratio("plain", "smalti"),
            "cache_mb": round(cache.nbytes / 1e6, 1),
        }
        layout = prior.layout
        del prior, cache
    mine = next(entry for entry in result["formats"].values() if entry["default"])
    published = result["formats"]["fp32"]["plain_seconds"]
    result["plain_fp32_over_our_default"] = round(published / mine["smalti_seconds"], 2)
    tokens = to_tokens(torch.randint(layout.vocab_size, (images, layout.num_tokens)), layout)
    result["decoder_seconds"] = round(min(seconds(lambda: tokenizer.decode(tokens)) for _ in range(2)), 3)
    result["drawing_seconds"] = cut_seconds(layout, images)
    return result


TERMS = Terms(
    compared="Seconds to sample all images of a row with guidance, medians of the rounds: smalti, the matrix "
    "products of the same prior alone, and a plain loop with a cache. `make bench-sample` repeats it; "
    "`benchmarks/sampling.py` says what each contestant does.",
    number_format='In each row; all three compute in it. "default" is what smalti chooses here.',
    layout="Rows of tokens, contiguous; smalti rearranges LlamaGen's weights once a call, the others in every product.",
    threads=f"{THREADS} for everybody.",
    tuning="Nobody; random weights cost what trained ones do. The plain loop was written by us.",
    not_shown="How fast the publishers' own code is, which is not run. Nor anything about GPUs.",
)


def table(rows: list[dict], head: dict) -> str:
    """The results in Markdown."""
    lines = [
        *beginning("Sampling side by side", TERMS, head),
        "| prior-images | format | images/s | smalti s | products s | plain s | ours / products | plain / ours "
        "| cache MB |", "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for row in rows:
        for label, entry in row["formats"].items():
            names = ("images_per_second", "smalti_seconds", "products_seconds", "plain_seconds", "ours_over_products")
            numbers = " | ".join(str(entry[name]) for name in (*names, "plain_over_ours", "cache_mb"))
            lines.append(f"| {row['row']} | {label}{' (default)' * entry['default']} | {numbers} |")
    lines += [
        "", "| prior-images | plain fp32 / our default | decoder s | drawing s | with top-k 900 | with top-p 0.95 |",
        "|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for row in rows:
        drawing = " | ".join(str(value) for value in row["drawing_seconds"].values())
        lines.append(f"| {row['row']} | {row['plain_fp32_over_our_default']} | {row['decoder_seconds']} | {drawing} |")
    return "\n".join([*lines, "", NOTES])


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=ROWS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    head = facts()
    names = [options.only] if options.only else list(ROWS)
    measure_rows(names, lambda row: compare(row, options.rounds), table, head, list(ROWS), options.out)


if __name__ == "__main__":
    main()
