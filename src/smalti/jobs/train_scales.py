"""Fits the scales of a multi-scale tokenizer to the size of the training images.

If the side of the latent differs from the last of `patch_nums`, the quantizer resizes all scales in proportion. That is
right for encoding an image of any size, but wrong for training: for an image four times as large, 1 to 8 become 4 to
32, without a coarse scale.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from smalti.jobs.train_config import TrainConfig
from smalti.quantizers import MultiScaleQuantizer
from smalti.zoo import DEFAULT, MODELS, build, open_tokenizer


def fit_scales(config: TrainConfig) -> tuple[TrainConfig, str]:
    """The config with scales that end at the side of the latent, and a message about the change ("" if there is none).

    Raises:
        ValueError: scales that do not fit, and that are set in the config or belong to the model in `init_from`.
    """
    if config.input.size is None:
        return config, ""
    chosen, name = config.model_args, DEFAULT if config.model == "auto" else config.model
    if taken := config.model == "auto" and bool(config.init_from):
        model = open_tokenizer(config.init_from)
    else:
        with torch.device("meta"):  # only its sizes are needed
            model = build(name, **chosen)
    if not isinstance(model.quantizer, MultiScaleQuantizer):
        return config, ""
    own, grid = list(model.quantizer.patch_nums), model.latent_grid(config.input.height_width)
    if min(grid) <= own[-1] <= max(grid):
        return config, ""
    sides = scales_up_to(min(grid), own)
    size = " x ".join(map(str, config.input.height_width))
    if taken or _named(chosen):
        raise ValueError(f"patch_nums: got {own}, expected {sides} for images of {size}, or another input.size")
    line = f"patch_nums: changed from {own} to {sides} for images of {size}"
    return replace(config, model_args=_with_scales(chosen, MODELS[name], sides)), line


def scales_up_to(side: int, patch_nums: Sequence[int]) -> list[int]:
    """Scales that end at `side`: those of `patch_nums`, continued at the growth of its last two if `side` is larger.

    >>> scales_up_to(8, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    [1, 2, 3, 4, 5, 6, 8]
    >>> scales_up_to(32, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32]
    """
    sides = list(patch_nums)
    growth = sides[-1] / sides[-2] if len(sides) > 1 else 2.0
    while sides[-1] < side:
        sides.append(max(sides[-1] + 1, round(sides[-1] * growth)))
    return [each for each in sides if each < side and each * math.sqrt(growth) <= side] + [side]


def _named(model_args: dict[str, Any]) -> bool:
    """Whether the user set the scales: by patch_nums, or with a quantizer of another type."""
    quantizer = model_args.get("quantizer", {})
    return "patch_nums" in model_args or "patch_nums" in quantizer or "type" in quantizer


def _with_scales(model_args: dict[str, Any], row: dict[str, Any], sides: list[int]) -> dict[str, Any]:
    """The arguments with `patch_nums` at the place where the model's row has them."""
    if "patch_nums" in row:
        return {**model_args, "patch_nums": sides}
    return {**model_args, "quantizer": {**model_args.get("quantizer", {}), "patch_nums": sides}}
