"""Show-o's MAGVIT-v2, which MMaDA uses too: 13 bits per token; the first channel is the highest bit.

Source: Xie et al. 2024, "Show-o" (arXiv 2408.12528), after MAGVIT-v2 (Yu et al. 2023, arXiv 2310.05737). taming's
blocks, but encoder and decoder have different widths, each level has its own number of blocks, and the convolutions
around the quantizer belong to encoder and decoder.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smalti.quantizers import LookupFreeQuantizer
from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, build_vqgan, has
from smalti.zoo.published.inference import Shapes, blocks_of_levels, codebook_shape
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import taming_names


def names(candidate: Candidate) -> NameTable:
    """taming's names, with the convolutions around the quantizer inside encoder and decoder."""
    table = taming_names(candidate)
    around = {"encoder.quant_conv": "encoder.projection", "decoder.post_quant_conv": "decoder.projection"}
    return NameTable({**table.modules, **around}, table.leaves)


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    image_range: Sequence[float] = (-1.0, 1.0),
    norm_groups: int = 32,
) -> VQGAN:
    """A VQGAN of the checkpoint's sizes whose tokens are signs."""
    quantizer = LookupFreeQuantizer(codebook_shape(shapes)[1], highest_first=True)
    encoder, decoder = ({"num_res_blocks": blocks_of_levels(shapes, half)} for half in ("encoder", "decoder"))
    options: dict[str, Any] = {"image_range": image_range, "norm_groups": norm_groups, "exact_norms": True}
    return build_vqgan(shapes, source, quantizer, encoder=encoder, decoder=decoder, **options)


def recognises(candidate: Candidate) -> bool:
    """A convolution before the quantizer inside the encoder, and bits or their powers of two instead of a codebook."""
    powers = has(candidate, r"quantize\.power_vals$") or not has(candidate, r"quantize\.")
    return has(candidate, r"encoder\.quant_conv\.") and has(candidate, r"encoder\.mid\.block_1\.") and powers


FAMILY = Family(
    title="Show-o MAGVIT-v2",
    url="https://github.com/showlab/Show-o",
    licence="not stated; the code is Apache-2.0",
    names=names,
    recognises=recognises,
    build=build,
    ignored=r"quantize\.(embedding|power_vals)$",
)
