"""Chameleon's VQ-VAE as transformers has it: the encoder alone, so images become tokens but not the other way.

Source: Chameleon Team 2024 (arXiv 2405.09818), after Make-A-Scene (arXiv 2203.13131). The original `vqgan.ckpt`,
which has a decoder, is of the family `taming`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, codebook, has
from smalti.zoo.published.inference import Shapes, image_channels, infer_pyramid
from smalti.zoo.published.vqgan_names import taming_names


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    metric: str = "euclidean",
    image_range: Sequence[float] = (-1.0, 1.0),
    norm_groups: int = 32,
) -> VQGAN:
    """A VQGAN without decoder."""
    return VQGAN(
        infer_pyramid(shapes, "encoder", norm_groups=norm_groups),
        codebook(shapes, metric),
        encoder_only=True,
        image_channels=image_channels(shapes),
        image_range=image_range,
        source=source,
    )


def recognises(candidate: Candidate) -> bool:
    """taming's encoder and codebook without a decoder."""
    encoder = has(candidate, r"encoder\.(down\.\d+\.block|mid\.block_1)\.") and has(candidate, r"quantize\.")
    return encoder and not has(candidate, r"decoder\.")


FAMILY = Family(
    title="Chameleon VQ-VAE (transformers)",
    url="https://huggingface.co/facebook/chameleon-7b",
    licence="Chameleon Research License",
    names=taming_names,
    recognises=recognises,
    build=build,
    ignored=r"post_quant_conv\.",
)
