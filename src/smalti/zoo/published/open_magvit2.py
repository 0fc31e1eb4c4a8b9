"""Open-MAGVIT2 (SEED-Voken): 128 and 256 pixels, 2 ** 14 or 2 ** 18 codes; the bits are the signs of the latent.

Source: Luo et al. 2024, "Open-MAGVIT2" (arXiv 2409.04410), after MAGVIT-v2 (Yu et al. 2023, arXiv 2310.05737). Blocks
without bias and attention, upsampling by pixel shuffle, and decoder levels that start with a norm that depends on the
whole latent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smalti.quantizers.binary import LookupFreeQuantizer
from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, build_vqgan, has
from smalti.zoo.published.inference import Shapes, codebook_shape
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import LEAVES, LEVELS, OUTER

NAMES = NameTable(
    {
        **OUTER,
        "encoder.down.{i}.downsample": "encoder.levels.{i}.resample.conv",
        "decoder.up.{i}.upsample.conv1": "decoder.levels.{i}.resample.conv",
        **{theirs: ours for theirs, ours in LEVELS.items() if "sample" not in theirs},
        "encoder.mid_block.{i}": "encoder.mid.{i}",
        "decoder.mid_block.{i}": "decoder.mid.{i}",
        "decoder.adaptive.{i}": "decoder.levels.{i}.entry",
    },
    {**LEAVES, "gamma": "scale", "beta": "shift"},
)


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    image_range: Sequence[float] = (-1.0, 1.0),
    norm_groups: int = 32,
) -> VQGAN:
    """A VQGAN of the checkpoint's sizes whose tokens are signs."""
    quantizer = LookupFreeQuantizer(codebook_shape(shapes)[1])
    options: dict[str, Any] = {"image_range": image_range, "norm_groups": norm_groups}
    return build_vqgan(shapes, source, quantizer, encoder={"resample": "conv-symmetric"}, **options)


def recognises(candidate: Candidate) -> bool:
    """A list of blocks in the middle, and norms that depend on the latent."""
    return has(candidate, r"(encoder\.mid_block\.\d|decoder\.adaptive\.)") and not has(
        candidate, r"encoder\.down_blocks"
    )


FAMILY = Family(
    title="SEED-Voken Open-MAGVIT2",
    url="https://github.com/TencentARC/SEED-Voken",
    licence="Apache-2.0",
    names=lambda candidate: NAMES,
    recognises=recognises,
    build=build,
    averaged=True,
)
