"""RQ-VAE: taming's networks and four residual levels of codes per position.

Source: Lee et al. 2022, "Autoregressive Image Generation using Residual Quantization" (arXiv 2203.01941). A published
codebook has one additional row for padding, which is never searched. If all levels share a codebook, the file repeats
it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smalti.ops.nearest import Metric
from smalti.quantizers import ResidualQuantizer, VectorQuantizer
from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, build_vqgan, has
from smalti.zoo.published.inference import Shapes, codebook_shape, count
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import taming_names

TABLE = r"quantizer\.(codebooks|quantizers)\.\d+\.(embedding\.)?weight"
"""Pattern for the codebook of a level, under the publisher's name and smalti's."""


def names(candidate: Candidate) -> NameTable:
    """taming's names, and one codebook per level."""
    table = taming_names(candidate)
    codebooks = {"quantizer.codebooks.{i}.weight": "quantizer.quantizers.{i}.embedding.weight"}
    return NameTable({**table.modules, **codebooks}, table.leaves)


def shared(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all levels have the same codebook."""
    tables = [tensor for name, tensor in tensors.items() if re.fullmatch(TABLE, name)]
    return len(tables) > 1 and all(torch.equal(table, tables[0]) for table in tables)


def facts(candidate: Candidate) -> dict[str, Any]:
    """Whether the levels share one codebook."""
    return {"shared_codebook": shared(candidate.tensors)}


def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Codebooks without the last row; a shared codebook only once."""
    once = shared(tensors)
    return {
        name: tensor[:-1] if re.fullmatch(TABLE, name) else tensor
        for name, tensor in tensors.items()
        if not (once and re.fullmatch(TABLE, name) and ".0." not in name)
    }


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    shared_codebook: bool = True,
    metric: Metric = "euclidean",
    image_range: Sequence[float] = (-1.0, 1.0),
    norm_groups: int = 32,
) -> VQGAN:
    """A VQGAN of the checkpoint's sizes with residual levels."""
    levels = max(1, count(shapes, r"quantizer\.quantizers\.(\d+)\."))
    size, dim = codebook_shape(shapes)
    codebooks = [VectorQuantizer(size, dim, metric=metric) for _ in range(1 if shared_codebook else levels)]
    quantizer = ResidualQuantizer(codebooks, num_quantizers=levels)
    options: dict[str, Any] = {"image_range": image_range, "norm_groups": norm_groups, "exact_norms": True}
    return build_vqgan(shapes, source, quantizer, **options)


def recognises(candidate: Candidate) -> bool:
    """One codebook per level."""
    return has(candidate, r"quantizer\.codebooks\.\d") and has(candidate, r"encoder\.")


FAMILY = Family(
    title="RQ-VAE",
    url="https://github.com/kakaobrain/rq-vae-transformer",
    licence="CC-BY-NC-SA 4.0",
    names=names,
    recognises=recognises,
    build=build,
    facts=facts,
    convert=convert,
    ignored=r"quantizer\.codebooks\.\d+\.(cluster_size_ema|embed_ema)$",
)
