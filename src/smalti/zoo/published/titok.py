"""TiTok: S-128, B-64 and L-32 (two stages, with a pixel decoder), and the single-stage BL-64, BL-128, SL-256.

Source: Yu et al. 2024, "An Image is Worth 32 Tokens" (arXiv 2406.07550). Images in [0, 1]. The tensors do not show the
number of heads. It is taken from `num_heads`, else from a config.json beside the file, else one per 64 dimensions.
"""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from smalti.ops.nearest import Metric
from smalti.quantizers import VectorQuantizer
from smalti.tokenizers import TiTok
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, has
from smalti.zoo.published.inference import Shapes, any_name, count, infer_pyramid, vote
from smalti.zoo.published.maskgit import MODULES as PIXEL_MODULES
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import LEAVES

PIXELS = "decoder.head.pixels"

NAMES = NameTable(
    {
        "latent_tokens": "encoder.latent_tokens",
        "encoder.patch_embed": "encoder.patch_embedding",
        "encoder.conv_out": "encoder.projection",
        "decoder.decoder_embed": "decoder.embedding",
        "decoder.mask_token": "decoder.mask_token",
        "decoder.ffn.0": "decoder.head.patches",
        "decoder.conv_out": "decoder.head.conv_out",
        "quantize.embedding": "quantizer.embedding",
        **{
            f"{half}.{theirs}": f"{half}.{ours}"
            for half in ("encoder", "decoder")
            for theirs, ours in (
                ("class_embedding", "class_embedding"),
                ("positional_embedding", "positions"),
                ("latent_token_positional_embedding", "latent_positions"),
                ("ln_pre", "norm_in"),
                ("ln_post", "norm_out"),
                ("transformer.{i}", "layers.{i}"),
            )
        },
    },
    {
        "attn.in_proj_weight": "attention.qkv.weight",
        "attn.in_proj_bias": "attention.qkv.bias",
        "attn.out_proj": "attention.out",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "mlp.c_fc": "mlp.0",
        "mlp.c_proj": "mlp.2",
    },
)
"""Names of the single-stage models."""

TWO_STAGE_NAMES = NameTable(
    {
        **NAMES.modules,
        "decoder.ffn.0": "decoder.head.logits.0",
        "decoder.ffn.2": "decoder.head.logits.2",
        "pixel_quantize.embedding": "decoder.head.codebook",
        **{
            f"pixel_{theirs}": ours.replace("decoder.", f"{PIXELS}.", 1)
            for theirs, ours in PIXEL_MODULES.items()
            if theirs.startswith("decoder.")
        },
    },
    {**NAMES.leaves, **LEAVES},
)
"""Names of the two-stage models, which have MaskGIT's pixel decoder."""


def names(candidate: Candidate) -> NameTable:
    """The table for one or for two stages."""
    two_stages = has(candidate, r"(decoder\.ffn\.2|pixel_decoder|pixel_quantize)\.")
    return TWO_STAGE_NAMES if two_stages else NAMES


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    num_heads: int | Sequence[int] | None = None,
    metric: Metric | None = None,
    image_range: Sequence[float] = (0.0, 1.0),
) -> TiTok:
    """A TiTok of the checkpoint's sizes.

    Args:
        shapes: shapes by smalti's names.
        config: content of the config.json beside the file.
        source: origin of the weights, saved in the model's config.
        num_heads: for both transformers, or one number each for encoder and decoder; None: from config.json, else
            width / 64.
        metric: "cosine" for codes of unit length, or "euclidean"; None: from config.json, else "cosine" for two-stage
            models only.
        image_range: value range of the publisher's images.
    """
    published = config.get("model", {})
    published = published.get("vq_model", {}) if isinstance(published, Mapping) else {}
    if not any_name(shapes, r"quantizer\.embedding\.") and published.get("quantize_mode") == "vae":
        raise ValueError("quantize_mode: got 'vae', a continuous TiTok without tokens, expected 'vq'")
    two_stages = any_name(shapes, r"decoder\.head\.logits\.2")
    if two_stages and not any_name(shapes, rf"{PIXELS}\."):
        raise ValueError(
            "this is a first-stage TiTok, which predicts codes of MaskGIT-VQGAN and has no pixel decoder; load the "
            "second-stage checkpoint"
        )
    encoder = infer_vit(shapes, "encoder", _heads(num_heads, 0, config))
    side = isqrt(max(1, vote(shapes, (r"encoder\.positions", 0), default=2) - 1))
    image_size = side * encoder["patch_size"]
    decoder = infer_vit(shapes, "decoder", _heads(num_heads, 1, config))
    decoder["patch_size"] = image_size // isqrt(max(1, vote(shapes, (r"decoder\.positions", 0), default=2) - 1))
    unit_codes = published.get("use_l2_norm", two_stages)
    codebook = (r"quantizer\.embedding\.weight", 0), (r"quantizer\.embedding\.weight", 1)
    dim = vote(shapes, codebook[1], (r"encoder\.projection\.(weight|bias)", 0), default=1)
    return TiTok(
        VectorQuantizer(
            vote(shapes, codebook[0], default=1), dim, metric=metric or ("cosine" if unit_codes else "euclidean")
        ),
        encoder,
        decoder,
        image_size=image_size,
        num_latent_tokens=vote(
            shapes, (r"encoder\.latent_(tokens|positions)", 0), (r"decoder\.latent_positions", 0), default=1
        ),
        pixel_decoder=infer_pyramid(shapes, PIXELS) if two_stages else None,
        num_pixel_codes=vote(
            shapes, (r"decoder\.head\.codebook\.weight", 0), (r"decoder\.head\.logits\.2\.(weight|bias)", 0), default=1
        ),
        image_channels=vote(shapes, (PATCHES, 1), default=3),
        image_range=image_range,
        source=source,
    )


PATCHES = r"encoder\.patch_embedding\.weight"


def infer_vit(shapes: Shapes, half: str, num_heads: int | None) -> dict[str, Any]:
    """Sizes of a transformer, as `ViTConfig` takes them."""
    width = vote(shapes, (rf"{half}\.layers\.\d+\.norm[12]\.(weight|bias)", 0), default=64)
    hidden = vote(shapes, (rf"{half}\.layers\.\d+\.mlp\.0\.(weight|bias)", 0), default=4 * width)
    return {
        "width": width,
        "layers": max(1, count(shapes, rf"{half}\.layers\.(\d+)\.")),
        "num_heads": num_heads or max(1, width // 64),
        "patch_size": vote(shapes, (PATCHES, 2), (PATCHES, 3), default=16),
        "mlp_ratio": hidden / width,
    }


def _heads(num_heads: int | Sequence[int] | None, half: int, config: Mapping[str, Any]) -> int | None:
    if num_heads is None:
        sizes = config.get("vit", {})
        return sizes.get("heads") if isinstance(sizes, Mapping) else None
    return num_heads if isinstance(num_heads, int) else num_heads[half]


def recognises(candidate: Candidate) -> bool:
    """Latent tokens."""
    return has(candidate, r"(latent_tokens$|encoder\.latent_token_positional_embedding)")


FAMILY = Family(
    title="TiTok",
    url="https://github.com/bytedance/1d-tokenizer",
    licence="Apache-2.0",
    names=names,
    recognises=recognises,
    build=build,
    averaged=True,
)
