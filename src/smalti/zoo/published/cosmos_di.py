"""NVIDIA's Cosmos DI8x8 and DI16x16, of version 0.1 and of Tokenize1: Haar patches and 64000 codes by rounding.

Source: NVIDIA 2025, "Cosmos World Foundation Model Platform for Physical AI" (arXiv 2501.03575). taming's blocks on
patches of 4 (0.1) or 2 pixels (Tokenize1). Not every level halves the size; the convolutions show which do. The .jit
files contain the levels of the quantizer, state dicts do not. The publisher computes in bf16, smalti in fp32.
"""

from collections.abc import Mapping, Sequence
from math import log2
from typing import Any

from smalti.quantizers import FiniteScalarQuantizer
from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, build_vqgan, has
from smalti.zoo.published.inference import Shapes, codebook_shape, image_channels
from smalti.zoo.published.vqgan_names import taming_names


def facts(candidate: Candidate) -> dict[str, Any]:
    """The levels of the quantizer, if the file contains them."""
    for name in ("quantizer._levels", "inv_quant.quantizer._levels"):
        if name in candidate.tensors:
            return {"levels": [int(level) for level in candidate.tensors[name].flatten()]}
    return {}


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    levels: Sequence[int] = (8, 8, 8, 5, 5, 5),
    image_range: Sequence[float] = (-1.0, 1.0),
    norm_groups: int = 32,
) -> VQGAN:
    """A VQGAN of the checkpoint's sizes on Haar patches, with finite scalar quantization."""
    components = codebook_shape(shapes)[1]
    if len(levels) != components:
        raise ValueError(f"levels: got {list(levels)}, expected one number for each of {components} dimensions")
    rounds = round(log2(image_channels(shapes) / 3) / 2)
    encoder, decoder = (
        {"haar_rounds": rounds, "num_resamplings": _resamplings(shapes, half)} for half in ("encoder", "decoder")
    )
    options: dict[str, Any] = {"image_range": image_range, "norm_groups": norm_groups, "exact_norms": True}
    return build_vqgan(
        shapes, source, FiniteScalarQuantizer(levels), encoder=encoder, decoder=decoder, channels=3, **options
    )


def _resamplings(shapes: Shapes, half: str) -> int:
    """Number of levels that halve or double the size."""
    return sum(name.startswith(f"{half}.levels.") and name.endswith(".resample.conv.bias") for name in shapes)


def recognises(candidate: Candidate) -> bool:
    """taming's blocks with a first convolution of 12, 48 or 192 channels, and no codebook."""
    stem = candidate.tensors.get("encoder.conv_in.weight")
    patches = stem is not None and stem.dim() == 4 and stem.shape[1] in (12, 48, 192)
    return patches and has(candidate, r"encoder\.mid\.block_1\.") and not has(candidate, r"quantize\.")


FAMILY = Family(
    title="NVIDIA Cosmos DI",
    url="https://github.com/NVIDIA/Cosmos-Tokenizer",
    licence="NVIDIA Open Model License",
    names=taming_names,
    recognises=recognises,
    build=build,
    averaged=True,
    facts=facts,
    ignored=r"((inv_quant\.)?quantizer|encoder\.patcher|decoder\.unpatcher)\.",
)
