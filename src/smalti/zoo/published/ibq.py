"""IBQ (SEED-Voken): taming's networks with 1024 to 262144 codes; the code with the largest dot product is chosen.

Source: Shi et al. 2024, "Scalable Image Tokenization with Index Backpropagation Quantization" (arXiv 2412.02692). Its
checkpoints hold raw and averaged weights; the publisher evaluates the averaged ones.
"""

from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, vqgan
from smalti.zoo.published.taming import recognises as taming_recognises
from smalti.zoo.published.vqgan_names import taming_names


def recognises(candidate: Candidate) -> bool:
    """taming's names, with averaged weights or SEED-Voken's discriminator."""
    discriminator = any(name.startswith("loss.discriminator.block") for name in candidate.tensors)
    averaged = any(name.startswith("encoder") for name in candidate.averages)
    return taming_recognises(candidate) and (averaged or discriminator)


FAMILY = Family(
    title="SEED-Voken IBQ",
    url="https://github.com/TencentARC/SEED-Voken",
    licence="Apache-2.0",
    names=taming_names,
    recognises=recognises,
    build=vqgan("dot"),
    averaged=True,
)
