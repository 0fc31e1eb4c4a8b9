"""SBER's MoVQGAN in its original files: 67M, 102M and 270M parameters, stride 8.

Source: Zheng et al. 2022, "MoVQ" (arXiv 2209.09002). taming's encoder, and a decoder in which every norm depends on the
codes. Kandinsky's copy, under diffusers' names, belongs to the family `diffusers`. Averaged weights of a training
checkpoint are ignored, as the publisher does.
"""

from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, has, vqgan
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.taming import recognises as taming_recognises
from smalti.zoo.published.vqgan_names import taming_names

NORMS = {"norm_layer": "norm", "conv_y": "scale", "conv_b": "shift"}
"""Names inside a norm that depends on the codes."""


def names(candidate: Candidate) -> NameTable:
    """taming's names, and those inside the norms."""
    table = taming_names(candidate)
    return NameTable(table.modules, {**table.leaves, **NORMS})


def recognises(candidate: Candidate) -> bool:
    """taming's names, and norms with two convolutions."""
    return taming_recognises(candidate) and has(candidate, r"decoder\..*\.conv_[yb]\.")


FAMILY = Family(
    title="SBER MoVQGAN",
    url="https://github.com/ai-forever/MoVQGAN",
    licence="Apache-2.0",
    names=names,
    recognises=recognises,
    build=vqgan(exact_norms=True),
    ignored=r"ema_(encoder|decoder|quantize|quant_conv|post_quant_conv)\.",
)
