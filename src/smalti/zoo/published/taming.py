"""taming-transformers: VQGAN f16 with 1024 or 16384 codes, f8, and the Gumbel f8 model.

Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841). taming's code
exchanges the weights of commitment and codebook loss; fine-tuning in smalti follows the paper. taming's Gumbel model
draws noise when it encodes; here the token is the highest score, so encoding is deterministic.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smalti.ops.nearest import Metric
from smalti.quantizers import Quantizer
from smalti.quantizers.gumbel import GumbelQuantizer
from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, build_vqgan, codebook, has
from smalti.zoo.published.inference import Shapes, any_name, vote
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import taming_names


def names(candidate: Candidate) -> NameTable:
    """The usual names, and those of two other quantizers: the Gumbel model's, and VQ-Diffusion's EMA quantizer, which
    has its codebook in a buffer."""
    table = taming_names(candidate)
    table.modules.update({"quantize.proj": "quantizer.proj", "quantize.embed": "quantizer.embedding"})
    if "quantize.embedding" in candidate.tensors:
        table.modules["quantize.embedding"] = "quantizer.embedding.weight"
    return table


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    metric: Metric = "euclidean",
    image_range: Sequence[float] = (-1.0, 1.0),
    norm_groups: int = 32,
) -> VQGAN:
    """A VQGAN of the checkpoint's sizes."""
    if any_name(shapes, r"quantizer\.proj\."):
        codes, dim = r"quantizer\.(embedding\.weight|proj\.weight|proj\.bias)", r"quantizer\.embedding\.weight"
        sizes = vote(shapes, (codes, 0), default=1), vote(shapes, (dim, 1), default=1)
        quantizer: Quantizer = GumbelQuantizer(*sizes)
    else:
        quantizer = codebook(shapes, metric)
    return build_vqgan(shapes, source, quantizer, image_range=image_range, norm_groups=norm_groups)


def recognises(candidate: Candidate) -> bool:
    """Levels named down and up, two residual blocks in the middle."""
    return has(candidate, r"encoder\.mid\.block_1\.") and has(candidate, r"decoder\.")


FAMILY = Family(
    title="taming-transformers VQGAN",
    url="https://github.com/CompVis/taming-transformers",
    licence="MIT",
    names=names,
    recognises=recognises,
    build=build,
    ignored=r"quantize\.(cluster_size|embedding_avg)$",
)
