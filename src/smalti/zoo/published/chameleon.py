"""Chameleon's VQ-VAE in the format of transformers: only the encoder, so it encodes images and cannot decode tokens.

Source: Chameleon Team 2024 (arXiv 2405.09818), after Make-A-Scene (arXiv 2203.13131). The original `vqgan.ckpt` has a
decoder and belongs to the family `taming`.
"""

from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, has, vqgan
from smalti.zoo.published.vqgan_names import taming_names


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
    build=vqgan(encoder_only=True),
    ignored=r"post_quant_conv\.",
)
