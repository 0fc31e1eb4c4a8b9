"""SimVQ: a frozen codebook behind a learned linear layer, 1024 to 262144 codes, 128 pixels.

Source: Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer" (arXiv
2411.02038). The networks are those of `open_magvit2.py` without the norms that depend on the latent. The publisher
evaluates averaged weights; the frozen codebook has no average and is loaded unchanged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smalti.ops.nearest import Metric
from smalti.quantizers import SimVQ
from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, build_vqgan, has
from smalti.zoo.published.inference import Shapes, codebook_shape
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.open_magvit2 import NAMES as NETWORKS

NAMES = NameTable(
    {**NETWORKS.modules, "quantize.embedding_proj": "quantizer.embedding_proj"},
    NETWORKS.leaves,
)


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    metric: Metric = "euclidean",
    image_range: Sequence[float] = (-1.0, 1.0),
    norm_groups: int = 32,
) -> VQGAN:
    """A VQGAN of the checkpoint's sizes with a linear layer behind the codebook."""
    quantizer = SimVQ(*codebook_shape(shapes), metric=metric)
    options: dict[str, Any] = {"image_range": image_range, "norm_groups": norm_groups, "exact_norms": True}
    return build_vqgan(shapes, source, quantizer, encoder={"resample": "conv-symmetric"}, **options)


def recognises(candidate: Candidate) -> bool:
    """The linear layer behind the codebook."""
    return has(candidate, r"quantize\.embedding_proj\.")


FAMILY = Family(
    title="SimVQ",
    url="https://github.com/youngsheen/SimVQ",
    licence="MIT",
    names=lambda candidate: NAMES,
    recognises=recognises,
    build=build,
    averaged=True,
    frozen=r"quantize\.embedding\.",
)
