"""Janus' VQ-VAE in the format of transformers: LlamaGen's VQ-16 under taming's names.

Source: Wu et al. 2024, Janus (arXiv 2410.13848). Two differences from `llamagen.py`: the decoder's levels are numbered
from the coarsest, and codes are searched by distance without normalization and then decoded at unit length, where
LlamaGen also searches at unit length. Original Janus checkpoints belong to the family `llamagen`.
"""

from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, has, vqgan
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import taming_names


def names(candidate: Candidate) -> NameTable:
    """taming's names, with the decoder's levels from coarse to fine."""
    table = taming_names(candidate)
    return NameTable(table.modules, table.leaves, fine_to_coarse=False)


def recognises(candidate: Candidate) -> bool:
    """taming's names, but the decoder's first level is the coarsest: it enlarges."""
    first_enlarges = has(candidate, r"decoder\.up\.0\.upsample\.")
    declared = str(candidate.config.get("model_type", "")).startswith("janus")
    return has(candidate, r"encoder\.mid\.block_1\.") and has(candidate, r"decoder\.") and (first_enlarges or declared)


FAMILY = Family(
    title="Janus VQ-VAE (transformers)",
    url="https://huggingface.co/deepseek-community/Janus-Pro-1B",
    licence="MIT (code), DeepSeek Model License (weights)",
    names=names,
    recognises=recognises,
    build=vqgan(unit_codes=True),
)
