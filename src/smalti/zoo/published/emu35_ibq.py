"""Emu3.5's vision tokenizer: IBQ with 131072 codes under taming's names, stride 16.

Source: Cui et al. 2025, "Emu3.5: Native Multimodal Models are World Learners" (arXiv 2510.26583), after IBQ (Shi et al.
2024, arXiv 2412.02692). It takes the code with the largest dot product, where `taming.py` takes the nearest one. Only
the config.yaml beside the file tells the two apart (`rivals.py`).
"""

from smalti.zoo.published.family import Family, vqgan
from smalti.zoo.published.taming import recognises
from smalti.zoo.published.vqgan_names import taming_names

FAMILY = Family(
    title="Emu3.5 vision tokenizer (IBQ)",
    url="https://github.com/baaivision/Emu3.5",
    licence="Apache-2.0",
    names=taming_names,
    recognises=recognises,
    build=vqgan("dot", exact_norms=True),
)
