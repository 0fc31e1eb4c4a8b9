"""Latent diffusion's VQ first stages: vq-f4, vq-f4-noattn, vq-f8, vq-f8-n256, vq-f16.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752). The
networks are those of `taming.py`. In a checkpoint of a whole diffusion model, their names begin with
"first_stage_model.".
"""

from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family
from smalti.zoo.published.taming import build, names
from smalti.zoo.published.taming import recognises as taming_recognises


def recognises(candidate: Candidate) -> bool:
    """taming's names inside a diffusion model."""
    return "first_stage_model." in candidate.prefix and taming_recognises(candidate)


FAMILY = Family(
    title="latent-diffusion VQ first stage",
    url="https://github.com/CompVis/latent-diffusion",
    licence="MIT",
    names=names,
    recognises=recognises,
    build=build,
)
