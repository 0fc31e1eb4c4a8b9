"""Janus' VQ-VAE as transformers has it: LlamaGen's VQ-16 under taming's names.

Source: Wu et al. 2024, Janus (arXiv 2410.13848). It differs from `llamagen.py` in two ways that its checkpoints show
or imply: the decoder's levels are numbered from the coarsest, and codes are chosen by distance as they are but
decoded at unit length, where LlamaGen compares directions. Original Janus checkpoints are of the family `llamagen`.
"""

from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, has, vqgan
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import taming_names


def names(candidate: Candidate) -> NameTable:
    """taming's names with the decoder's levels coarse to fine."""
    table = taming_names(candidate)
    return NameTable(table.modules, table.leaves, fine_to_coarse=False)


def recognises(candidate: Candidate) -> bool:
    """taming's names, but the first level of the decoder enlarges: it is the coarsest."""
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
