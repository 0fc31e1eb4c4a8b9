"""MaskGIT-VQGAN in the format of 1d-tokenizer: no bias, no attention, images in [0, 1].

Source: Chang et al. 2022, "MaskGIT" (arXiv 2202.04200), in the PyTorch port of open-muse. If a block changes its
width, the shortcut's convolution takes the block's result, not its input; the published weights are made for that.
"""

from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, has, vqgan
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import LEAVES, LEVELS, OUTER

MODULES = {
    **OUTER,
    "encoder.mid.{i}": "encoder.mid.{i}",
    "decoder.mid.{i}": "decoder.mid.{i}",
    "decoder.up.{i}.upsample_conv": "decoder.levels.{i}.resample.conv",
    **LEVELS,
}

NAMES = NameTable(MODULES, LEAVES)


def recognises(candidate: Candidate) -> bool:
    """Levels named down and up, and a list of blocks in the middle."""
    return has(candidate, r"encoder\.down\.\d+\.block\.") and has(candidate, r"encoder\.mid\.\d")


FAMILY = Family(
    title="MaskGIT-VQGAN",
    url="https://github.com/bytedance/1d-tokenizer",
    licence="Apache-2.0",
    names=lambda candidate: NAMES,
    recognises=recognises,
    build=vqgan(image_range=(0.0, 1.0)),
)
