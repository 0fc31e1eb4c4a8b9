"""Infers the architecture of a VQGAN from the names and shapes of a checkpoint.

Each size is a majority vote of several tensors. So one tensor of a wrong shape does not change the size, and the
comparison that follows (`fitting.py`) names exactly this tensor.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by smalti's names."""


def vote(shapes: Shapes, *axes: tuple[str, int], default: int) -> int:
    """The size that most tensors agree on.

    Args:
        shapes: all shapes.
        axes: pairs of a pattern (the whole name must match) and the axis to measure.
        default: the result if no tensor matches.
    """
    ballots = Counter(
        shape[axis]
        for pattern, axis in axes
        for name, shape in shapes.items()
        if re.fullmatch(pattern, name) and len(shape) > axis
    )
    return ballots.most_common(1)[0][0] if ballots else default


def count(shapes: Shapes, pattern: str) -> int:
    """Largest number that the group in `pattern` (for the start of names) matches, plus 1; 0 without a match."""
    return 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)


def any_name(shapes: Shapes, pattern: str) -> bool:
    """Whether the start of any name matches `pattern`."""
    return any(re.match(pattern, name) for name in shapes)


def codebook_shape(shapes: Shapes) -> tuple[int, int]:
    """Number of codes and their dimension, from the codebook and the convolutions around it."""
    dim = vote(
        shapes,
        (r"quantizer\.(quantizers\.0\.)?embedding\.weight", 1),
        (r"encoder\.projection\.(weight|bias)", 0),
        (r"decoder\.projection\.weight", 1),
        (r"quantizer\.phis\.\d+\.conv\.(weight|bias)", 0),
        default=vote(shapes, (r"encoder\.conv_out\.(weight|bias)", 0), (r"decoder\.stem\.weight", 1), default=1),
    )
    return vote(shapes, (r"quantizer\.(quantizers\.0\.)?embedding\.weight", 0), default=1), dim


def image_channels(shapes: Shapes) -> int:
    """Channels of the images."""
    return vote(shapes, (r"encoder\.stem\.weight", 1), (r"decoder\.conv_out\.(weight|bias)", 0), default=3)


def infer_pyramid(shapes: Shapes, half: str, *, norm_groups: int = 32, num_heads: int = 1) -> dict[str, Any]:
    """Configuration of one half of a VQGAN, as `PyramidConfig.of` takes it.

    Args:
        shapes: shapes by smalti's names.
        half: start of its names: "encoder" or "decoder".
        norm_groups: groups of each group normalisation; cannot be inferred.
        num_heads: attention heads; cannot be inferred.
    """
    is_encoder = half.startswith("encoder")
    base = re.escape(half)
    both = "(encoder|decoder)" if half in ("encoder", "decoder") else base
    levels = max(1, count(shapes, rf"{base}\.levels\.(\d+)\."))
    widths = [_width(shapes, rf"{base}\.levels\.{i}") for i in range(levels)]
    attention = [i for i in range(levels) if any_name(shapes, rf"{base}\.levels\.{i}\.attentions\.")]
    depths = Counter(count(shapes, rf"{base}\.levels\.{i}\.blocks\.(\d+)\.") for i in range(levels))
    if not is_encoder:  # a decoder lists its levels coarse to fine
        widths, attention = widths[::-1], sorted(levels - 1 - i for i in attention)
    config = {
        "widths": _filled(widths),
        "num_res_blocks": max(1, depths.most_common(1)[0][0]),
        "attention_levels": attention,
        "mid": _mid(shapes, base),
        "projection": vote(
            shapes,
            (rf"{both}\.projection\.weight", 3),
            default=int(any_name(shapes, rf"{both}\.projection\.")),
        ),
        "style": {
            "bias": any_name(shapes, rf"{base}\..*\.conv1\.bias$"),
            "shortcut": _shortcut(shapes, base),
            "norm": "spatial" if any_name(shapes, rf"{base}\..*norm1\.scale\.") else "group",
            "norm_groups": norm_groups,
            "num_heads": num_heads,
        },
    }
    return config | (_encoder_end(shapes, base) if is_encoder else _decoder_end(shapes, base))


def blocks_of_levels(shapes: Shapes, half: str) -> list[int]:
    """Residual blocks at each level of "encoder" or "decoder", from the image's resolution to the latent's."""
    levels = count(shapes, rf"{half}\.levels\.(\d+)\.")
    blocks = [max(1, count(shapes, rf"{half}\.levels\.{i}\.blocks\.(\d+)\.")) for i in range(levels)]
    return blocks if half == "encoder" else blocks[::-1]


def _encoder_end(shapes: Shapes, base: str) -> dict[str, Any]:
    first = rf"{base}\.levels\.0\.blocks\.0\.(conv1\.weight|shortcut\.weight)"
    return {
        "stem_width": vote(shapes, (rf"{base}\.stem\.(weight|bias)", 0), (first, 1), default=0) or None,
        "latent_channels": vote(
            shapes, (rf"{base}\.conv_out\.(weight|bias)", 0), (rf"{base}\.projection\.weight", 1), default=1
        ),
        "latent_kernel": vote(shapes, (rf"{base}\.conv_out\.weight", 3), default=3),
        "resample": "conv" if any_name(shapes, rf"{base}\.levels\.\d+\.resample\.") else "pool",
    }


def _decoder_end(shapes: Shapes, base: str) -> dict[str, Any]:
    resample = "conv" if any_name(shapes, rf"{base}\.levels\.\d+\.resample\.") else "nearest"
    for name, shape in shapes.items():
        if re.fullmatch(rf"{base}\.levels\.\d+\.resample\.conv\.weight", name) and shape[0] == 4 * shape[1]:
            resample = "depth-to-space"
    return {
        "latent_channels": vote(
            shapes, (rf"{base}\.stem\.weight", 1), (rf"{base}\.projection\.(weight|bias)", 0), default=1
        ),
        "resample": resample,
        "adaptive": any_name(shapes, rf"{base}\.levels\.\d+\.entry\."),
    }


def _width(shapes: Shapes, level: str) -> int:
    """Channels of one level; 0 if no tensor shows them."""
    outputs = rf"{level}\.blocks\.\d+\.(conv1\.weight|conv2\.weight|conv1\.bias|conv2\.bias|norm2\.weight)"
    return vote(shapes, (outputs, 0), (rf"{level}\.blocks\.\d+\.conv2\.weight", 1), default=0)


def _filled(widths: list[int]) -> list[int]:
    """Widths, with unknown ones replaced by their neighbours'."""
    for i in range(1, len(widths)):
        widths[i] = widths[i] or widths[i - 1]
    for i in reversed(range(len(widths) - 1)):
        widths[i] = widths[i] or widths[i + 1]
    return [width or 32 for width in widths]


def _mid(shapes: Shapes, base: str) -> list[str]:
    attention = r"(qkv|q|k|v|out|norm)\."
    return [
        "attention" if any_name(shapes, rf"{base}\.mid\.{i}\.{attention}") else "residual"
        for i in range(count(shapes, rf"{base}\.mid\.(\d+)\."))
    ]


def _shortcut(shapes: Shapes, base: str) -> str:
    """Kind of the shortcuts. MaskGIT's have as many input as output channels: their input is the block's result."""
    found = [
        (shape, shapes.get(name.replace(".shortcut.", ".conv1."), (0, 0)))
        for name, shape in shapes.items()
        if re.match(rf"{base}\..*\.shortcut\.weight$", name) and len(shape) == 4
    ]
    if any(shape[2] == 3 for shape, _ in found):
        return "3x3"
    after = [shape[0] == shape[1] != conv[1] for shape, conv in found if len(conv) > 1]
    return "after" if after and sum(after) * 2 > len(after) else "1x1"
