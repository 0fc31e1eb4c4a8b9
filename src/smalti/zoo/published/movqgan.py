"""SBER's MoVQGAN in its original files: 67M, 102M and 270M, stride 8.

Source: Zheng et al. 2022, "MoVQ" (arXiv 2209.09002). taming's encoder, and a decoder whose every norm looks at the
codes. Kandinsky's copy of it, in diffusers' names, is of the family `diffusers`. Averaged weights that a training
checkpoint holds are left out, as the publisher does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, build_vqgan, codebook, has
from smalti.zoo.published.inference import Shapes
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.taming import recognises as taming_recognises
from smalti.zoo.published.vqgan_names import taming_names

NORMS = {"norm_layer": "norm", "conv_y": "scale", "conv_b": "shift"}
"""Names inside a norm that looks at the codes."""


def names(candidate: Candidate) -> NameTable:
    """taming's names, and those inside the norms."""
    table = taming_names(candidate)
    return NameTable(table.modules, {**table.leaves, **NORMS})


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    metric: str = "euclidean",
    image_range: Sequence[float] = (-1.0, 1.0),
    norm_groups: int = 32,
) -> VQGAN:
    """A VQGAN of the checkpoint's sizes."""
    options: dict[str, Any] = {"image_range": image_range, "norm_groups": norm_groups, "exact_norms": True}
    return build_vqgan(shapes, source, codebook(shapes, metric), **options)


def recognises(candidate: Candidate) -> bool:
    """taming's names, and norms with two convolutions."""
    return taming_recognises(candidate) and has(candidate, r"decoder\..*\.conv_[yb]\.")


FAMILY = Family(
    title="SBER MoVQGAN",
    url="https://github.com/ai-forever/MoVQGAN",
    licence="Apache-2.0",
    names=names,
    recognises=recognises,
    build=build,
    ignored=r"ema_(encoder|decoder|quantize|quant_conv|post_quant_conv)\.",
)
