"""OpenAI's discrete VAE of DALL-E: 8192 codes, stride 8, in two files, encoder and decoder.

Source: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation" (arXiv 2102.12092). The published `encoder.pkl` and
`decoder.pkl` are whole modules. Reading them would run code, so they are refused; the message says how to convert them
to `encoder.safetensors` and `decoder.safetensors`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from smalti.quantizers.gumbel import OneHotQuantizer
from smalti.tokenizers import DVAE
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import Family, has
from smalti.zoo.published.inference import Shapes, count, vote
from smalti.zoo.published.names import NameTable


def names(candidate: Candidate) -> NameTable:
    """A table for all groups, blocks and convolutions of the file. The publisher counts from 1, smalti from 0."""
    places = [re.match(r".*\.group_(\d+)\.block_(\d+)\.", name) for name in candidate.tensors]
    modules: dict[str, str] = {}
    for half in ("encoder", "decoder"):
        modules |= {f"{half}.blocks.input": f"{half}.stem", f"{half}.blocks.output.conv": f"{half}.conv_out"}
        for i, j in sorted({(int(place[1]), int(place[2])) for place in places if place}):
            theirs, ours = f"{half}.blocks.group_{i}.block_{j}", f"{half}.groups.{i - 1}.{j - 1}"
            modules[f"{theirs}.id_path"] = f"{ours}.shortcut"
            modules |= {f"{theirs}.res_path.conv_{k}": f"{ours}.convs.{k - 1}" for k in range(1, 5)}
    return NameTable(modules, {"w": "weight", "b": "bias"})


def build(
    shapes: Shapes,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    image_range: Sequence[float] = (0.1, 0.9),
) -> DVAE:
    """A dVAE of the checkpoint's sizes."""
    codes = vote(shapes, (r"encoder\.conv_out\.(weight|bias)", 0), (r"decoder\.stem\.weight", 1), default=1)
    code_width = vote(shapes, (r"decoder\.stem\.(weight|bias)", 0), default=1)
    encoder, decoder = (
        {
            "width": vote(shapes, (width, 0 if half == "encoder" else 1), default=4),
            "blocks": max(1, count(shapes, rf"{half}\.groups\.\d+\.(\d+)\.")),
            "groups": max(1, count(shapes, rf"{half}\.groups\.(\d+)\.")),
        }
        for half, width in (("encoder", r"encoder\.stem\.(weight|bias)"), ("decoder", r"decoder\.conv_out\.weight"))
    )
    return DVAE(
        encoder,
        OneHotQuantizer(codes),
        {**decoder, "code_width": code_width},
        image_channels=vote(shapes, (r"encoder\.stem\.weight", 1), default=3),
        image_range=image_range,
        source=source,
    )


def recognises(candidate: Candidate) -> bool:
    """Groups and blocks counted from 1."""
    return has(candidate, r"(encoder|decoder)\.blocks\.group_\d+\.block_\d+\.")


FAMILY = Family(
    title="OpenAI dVAE (DALL-E)",
    url="https://github.com/openai/DALL-E",
    licence="MIT, modified by OpenAI",
    names=names,
    recognises=recognises,
    build=build,
)
