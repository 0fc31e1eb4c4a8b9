"""LlamaGen's VQ-16 and VQ-8, and Janus, which uses VQ-16 (`gen_vision_model.` in its checkpoints).

Source: Sun et al. 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (arXiv
2406.06525). taming's networks with other names: the middle blocks are a list, and the decoder's levels are numbered
from coarse to fine. Codes have 8 dimensions and unit length.
"""

from typing import Any

from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, has, vqgan
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import LEAVES, OUTER

NAMES = NameTable(
    {
        **OUTER,
        "encoder.conv_blocks.{i}.res.{j}": "encoder.levels.{i}.blocks.{j}",
        "encoder.conv_blocks.{i}.attn.{j}": "encoder.levels.{i}.attentions.{j}",
        "encoder.conv_blocks.{i}.downsample": "encoder.levels.{i}.resample",
        "encoder.mid.{i}": "encoder.mid.{i}",
        "decoder.conv_blocks.{i}.res.{j}": "decoder.levels.{i}.blocks.{j}",
        "decoder.conv_blocks.{i}.attn.{j}": "decoder.levels.{i}.attentions.{j}",
        "decoder.conv_blocks.{i}.upsample": "decoder.levels.{i}.resample",
        "decoder.mid.{i}": "decoder.mid.{i}",
    },
    LEAVES,
    fine_to_coarse=False,
)


def facts(candidate: Candidate) -> dict[str, Any]:
    """Whether codes have unit length, from a config.json with LlamaGen's arguments, as `smalti export` writes it."""
    if "codebook_l2_norm" not in candidate.config:
        return {}
    return {"metric": "cosine" if candidate.config["codebook_l2_norm"] else "euclidean"}


def recognises(candidate: Candidate) -> bool:
    """Levels called conv_blocks."""
    return has(candidate, r"(encoder|decoder)\.conv_blocks\.")


FAMILY = Family(
    title="LlamaGen VQ",
    url="https://github.com/FoundationVision/LlamaGen",
    licence="MIT",
    names=lambda candidate: NAMES,
    recognises=recognises,
    build=vqgan("cosine"),
    averaged=True,
    ignored=r"quantize\.codebook_used$",
    facts=facts,
)
