"""MaskBit's tokenizers with 10 to 18 bits, and VQGAN+ with a codebook: strides and blocks of MaskGIT, images in [0, 1].

Source: Weber et al. 2024, "MaskBit: Embedding-free Image Generation via Bit Tokens" (arXiv 2409.16211). No bias and no
attention. If a block changes its width, its shortcut takes the block's result instead of its input, as in
`maskgit.py`. The decoder's levels are listed from coarse to fine; older files ("legacy") list them in reverse.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smalti.ops.nearest import Metric
from smalti.quantizers import LookupFreeQuantizer, Quantizer
from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, build_vqgan, codebook, has
from smalti.zoo.published.inference import Shapes, any_name, codebook_shape
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import LEAVES, OUTER


def names(candidate: Candidate) -> NameTable:
    """Names with res_blocks. If the decoder's first level enlarges, its levels are listed from coarse to fine."""
    modules = {
        **OUTER,
        "encoder.down.{i}.res_blocks.{j}": "encoder.levels.{i}.blocks.{j}",
        "encoder.down.{i}.down_conv": "encoder.levels.{i}.resample.conv",
        "encoder.mid.res_blocks.{i}": "encoder.mid.{i}",
        "decoder.mid.res_blocks.{i}": "decoder.mid.{i}",
        "decoder.up.{i}.res_blocks.{j}": "decoder.levels.{i}.blocks.{j}",
        "decoder.up.{i}.upsample_conv": "decoder.levels.{i}.resample.conv",
    }
    return NameTable(modules, LEAVES, fine_to_coarse=not has(candidate, r"decoder\.up\.0\.upsample_conv\."))


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    metric: Metric = "euclidean",
    image_range: Sequence[float] = (0.0, 1.0),
    norm_groups: int = 32,
) -> VQGAN:
    """A VQGAN of the checkpoint's sizes, with a codebook if the file has one, otherwise with signs as tokens."""
    if any_name(shapes, r"quantizer\.embedding\."):
        quantizer: Quantizer = codebook(shapes, metric)
    else:
        quantizer = LookupFreeQuantizer(codebook_shape(shapes)[1])
    style = {"style": {"shortcut": "after", "bias": False, "norm_groups": norm_groups}}
    options: dict[str, Any] = {"image_range": image_range, "exact_norms": True}
    return build_vqgan(shapes, source, quantizer, encoder=style, decoder=style, **options)


def recognises(candidate: Candidate) -> bool:
    """Blocks named res_blocks."""
    return has(candidate, r"(encoder|decoder)\.(down|up)\.\d+\.res_blocks\.")


FAMILY = Family(
    title="MaskBit and VQGAN+",
    url="https://github.com/markweberdev/maskbit",
    licence="not stated; the publisher: for research purposes only",
    names=names,
    recognises=recognises,
    build=build,
    ignored=r"quantize\.(codebook|bits_to_indices)$",
)
