"""WeTok: groups of signs, 8 bits per token, 4 or 8 tokens per position; its decoder may take noise besides the codes.

Source: Zhuang et al. 2025, "WeTok: Powerful Discrete Tokenization for High-Fidelity Visual Reconstruction" (arXiv
2508.05599). Names and networks are those of `open_magvit2.py`, which combines all signs in one token; `rivals.py` tells
them apart. The file does not contain the number of bits per group. Each decoding draws new noise, so two images of the
same tokens differ; set `torch.manual_seed` for equal images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smalti.quantizers import GroupedQuantizer, LookupFreeQuantizer
from smalti.tokenizers import VQGAN
from smalti.zoo.published.family import Family, build_vqgan
from smalti.zoo.published.inference import Shapes, vote
from smalti.zoo.published.open_magvit2 import NAMES, recognises


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    bits_per_group: int = 8,
    image_range: Sequence[float] = (-1.0, 1.0),
    norm_groups: int = 32,
) -> VQGAN:
    """A VQGAN of the checkpoint's sizes with groups of signs as tokens."""
    adaptive = r"decoder\.levels\.\d+\.entry\.(scale|shift)\.weight"
    bits = vote(shapes, (r"encoder\.conv_out\.(weight|bias)", 0), (adaptive, 1), default=1)
    if bits_per_group < 1 or bits % bits_per_group:
        raise ValueError(f"bits_per_group: got {bits_per_group}, expected a divisor of {bits} channels")
    quantizer = GroupedQuantizer([LookupFreeQuantizer(bits_per_group)], num_groups=bits // bits_per_group)
    noise = vote(shapes, (r"decoder\.stem\.weight", 1), default=bits) == 2 * bits
    decoder: dict[str, Any] = {"latent_channels": bits, "noise": True} if noise else {}
    encoder = {"resample": "conv-symmetric"}
    options: dict[str, Any] = {"image_range": image_range, "norm_groups": norm_groups, "exact_norms": True}
    return build_vqgan(shapes, source, quantizer, encoder=encoder, decoder=decoder, **options)


FAMILY = Family(
    title="WeTok",
    url="https://github.com/zhuangshaobin/WeTok",
    licence="Apache-2.0",
    names=lambda candidate: NAMES,
    recognises=recognises,
    build=build,
    averaged=True,
)
