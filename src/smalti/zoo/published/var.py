"""VAR's multi-scale VQVAE (`vae_ch160v4096z32.pth`).

Source: Tian et al. 2024, "Visual Autoregressive Modeling" (arXiv 2404.02905). taming's networks with one convolution
for queries, keys and values, 3x3 convolutions around the quantizer, and the multi-scale quantizer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smalti.ops.nearest import Metric
from smalti.quantizers import MultiScaleQuantizer, VectorQuantizer
from smalti.quantizers.vector import ZNormVectorQuantizer
from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, build_vqgan, has
from smalti.zoo.published.inference import Shapes, codebook_shape, count
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import taming_names, taming_table

PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""The published scales for 256 x 256 pixels."""


USAGE = "quantizer.scale_usage"
"""Usage counts of the codes, one row per scale: training state, but it shows the number of scales."""


def names(candidate: Candidate) -> NameTable:
    """The usual names, and those of the multi-scale quantizer: one φ per scale, one for all, or a few shared ones."""
    return with_scales(taming_names(candidate))


def names_to_write(num_phi: int) -> NameTable:
    """The names in VAR's code for one φ for all scales, or for several shared ones."""
    table = with_scales(taming_table())
    for other in ("qresi_ls.{i}", "{i}") if num_phi == 1 else ("qresi", "{i}"):
        table.modules.pop(f"quantize.quant_resi.{other}")
    return table


def with_scales(table: NameTable) -> NameTable:
    """A table of taming's names with the multi-scale quantizer instead of the codebook."""
    table.modules.pop("quantize.embedding")
    table.modules.update(
        {
            "quantize.embedding": "quantizer.quantizers.0.embedding",
            "quantize.quant_resi.qresi_ls.{i}": "quantizer.phis.{i}.conv",
            "quantize.quant_resi.qresi": "quantizer.phis.0.conv",
            "quantize.quant_resi.{i}": "quantizer.phis.{i}.conv",
            "quantize.ema_vocab_hit_SV": USAGE,
        }
    )
    return table


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    patch_nums: Sequence[int] | None = None,
    metric: Metric = "euclidean",
    phi_ratio: float = 0.5,
    beta: float = 0.25,
    image_range: Sequence[float] = (-1.0, 1.0),
    norm_groups: int = 32,
) -> VQGAN:
    """A VQGAN of the checkpoint's sizes with a multi-scale quantizer; patch_nums None: the published ones."""
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric: got {metric!r}, expected 'euclidean' or 'cosine' (VAR's znorm)")
    if patch_nums is None:
        num_scales = shapes.get(USAGE, (len(PATCH_NUMS),))[0]
        if num_scales != len(PATCH_NUMS):
            raise ValueError(f"patch_nums: got None, expected the {num_scales} sides of the checkpoint")
        patch_nums = PATCH_NUMS
    size, dim = codebook_shape(shapes)
    kind = VectorQuantizer if metric == "euclidean" else ZNormVectorQuantizer
    num_phi = count(shapes, r"quantizer\.phis\.(\d+)\.")
    quantizer = MultiScaleQuantizer(
        size,
        dim,
        [int(side) for side in patch_nums],
        beta,
        num_phi=max(1, num_phi),
        phi_ratio=phi_ratio if num_phi else 0.0,
        quantizer=kind(size, dim),
    )
    return build_vqgan(shapes, source, quantizer, image_range=image_range, norm_groups=norm_groups)


def facts(candidate: Candidate) -> dict[str, Any]:
    """The options in a config.json with VAR's arguments, as `smalti export` writes it."""
    config, told = candidate.config, {}
    if "v_patch_nums" in config:
        told = {"patch_nums": config["v_patch_nums"], "phi_ratio": config.get("quant_resi", 0.5)}
        told["metric"] = "cosine" if config.get("using_znorm") else "euclidean"
    return told


def recognises(candidate: Candidate) -> bool:
    """φ, or the usage counts of the scales."""
    return has(candidate, r"quantize\.(quant_resi\.|ema_vocab_hit_SV)")


FAMILY = Family(
    title="VAR multi-scale VQVAE",
    url="https://github.com/FoundationVision/VAR",
    licence="MIT",
    names=names,
    recognises=recognises,
    build=build,
    ignored=r"quantize\.ema_vocab_hit_SV$",
    facts=facts,
)
