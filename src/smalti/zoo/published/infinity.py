"""Infinity's multi-scale tokenizers: 14 to 64 bits per position and scale, stride 8 or 16.

Source: Han et al. 2024, "Infinity: Scaling Bitwise AutoRegressive Modeling for High-Resolution Image Synthesis" (arXiv
2412.04431). taming's networks without attention. The quantizer is VAR's without φ, with signs in place of a codebook:
the residual of each scale is projected to the unit sphere, and codes are enlarged by bilinear interpolation.

The publisher has a table of scales for each size and aspect ratio. The default is the row for 256 x 256 pixels at
stride 16; other sizes take proportional scales. For another row of the table, give `patch_nums`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smalti.quantizers import BinarySphericalQuantizer, MultiScaleQuantizer
from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, build_vqgan, has
from smalti.zoo.published.inference import Shapes, codebook_shape
from smalti.zoo.published.names import NameTable
from smalti.zoo.published.vqgan_names import LEAVES, LEVELS, OUTER, mid_names

PATCH_NUMS = (1, 2, 4, 6, 8, 12, 16)
"""The published scales for 256 x 256 pixels at stride 16."""

INNER = {
    "norm1.norm": "norm1",
    "norm2.norm": "norm2",
    "conv1.conv": "conv1",
    "conv2.conv": "conv2",
    "nin_shortcut.conv": "shortcut",
    "conv.conv": "conv",
}
"""Names of blocks in which each layer is wrapped in a module of its own."""


def names(candidate: Candidate) -> NameTable:
    """taming's names, with or without the wrapping modules."""
    mid = mid_names("mid.block_1", None, "mid.block_2")
    if not has(candidate, r"encoder\.conv_in\.conv\."):
        return NameTable({**OUTER, **LEVELS, **mid}, LEAVES)
    outer = {f"{theirs}.{'norm' if 'norm' in theirs else 'conv'}": ours for theirs, ours in OUTER.items()}
    return NameTable({**outer, **LEVELS, **mid}, INNER)


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    patch_nums: Sequence[int] = PATCH_NUMS,
    image_range: Sequence[float] = (-1.0, 1.0),
    norm_groups: int = 32,
) -> VQGAN:
    """A VQGAN of the checkpoint's sizes with a multi-scale quantizer of bits."""
    bits = codebook_shape(shapes)[1]
    quantizer = MultiScaleQuantizer(
        2,
        bits,
        [int(side) for side in patch_nums],
        phi_ratio=0.0,
        quantizer=BinarySphericalQuantizer(bits, bitwise=True),
        upsampling="bilinear",
        projected="residuals",
    )
    options: dict[str, Any] = {"image_range": image_range, "norm_groups": norm_groups, "exact_norms": True}
    return build_vqgan(shapes, source, quantizer, **options)


def recognises(candidate: Candidate) -> bool:
    """The values of the bits, which the file contains twice."""
    return has(candidate, r"quantizer?\.lfq\.mask$")


FAMILY = Family(
    title="Infinity multi-scale BSQ",
    url="https://github.com/FoundationVision/Infinity",
    licence="MIT",
    names=names,
    recognises=recognises,
    build=build,
    ignored=r"quantizer?\.lfq\.mask$",
)
