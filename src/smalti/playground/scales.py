"""Panel 3, Scales: the picture after each scale or residual level, and image codecs at the same number of bytes."""

from typing import Any, get_args

import torch
from jaxtyping import UInt8
from torch import Tensor

from smalti.formats import packed_size
from smalti.metrics import TITLES, Codec, code_near, psnr, require_codec
from smalti.playground.look import finite
from smalti.playground.pictures import data_url
from smalti.playground.words import RefusalError
from smalti.playground.workspace import Workspace
from smalti.quantizers import ResidualQuantizer

CODECS: tuple[Codec, ...] = ("avif", "webp", "jpeg")


def number_of_steps(workspace: Workspace) -> int:
    """Number of scales, or of residual levels; 1 if a picture has only one map of tokens."""
    tokens, quantizer = workspace.step.tokens, workspace.opened.tokenizer.quantizer
    if len(tokens.indices) == 1 and isinstance(quantizer, ResidualQuantizer):
        return tokens.grids[0][-len(quantizer.code_shape)]
    return len(tokens.indices)


def tokens_until(workspace: Workspace, step: int) -> int:
    """Number of tokens up to and including a step, from 0."""
    grids = workspace.step.tokens.grids
    lengths = [torch.Size(grid).numel() for grid in grids]
    steps = number_of_steps(workspace)
    return sum(lengths[: step + 1]) if len(grids) > 1 else lengths[0] * (step + 1) // steps


def picture_until(workspace: Workspace, step: int) -> UInt8[Tensor, "1 c h w"]:
    """The picture of the first scales, up to and including `step`; the last is the reconstruction."""
    steps = number_of_steps(workspace)
    if not 0 <= step < steps:
        raise RefusalError("refused_step", got=step, last=steps - 1)
    if step == steps - 1:
        return workspace.step.image
    tokenizer, tokens = workspace.opened.tokenizer, workspace.step.tokens
    return workspace.cached(("until", step), lambda: tokenizer.progressive(tokens, [step])[0])


def show(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """The picture after the step `step` with its bytes and PSNR; None: the last step."""
    last = number_of_steps(workspace) - 1
    step = last if arguments.get("step") is None else int(arguments["step"])
    image = picture_until(workspace, step)
    pixels, count = workspace.pixels, tokens_until(workspace, step)
    return {
        "step": step,
        "steps": last + 1,
        "picture": data_url(image[0]),
        "tokens": count,
        "bytes": packed_size(count, workspace.step.tokens.vocab_size),
        "psnr": None if pixels is None else finite(psnr(image, pixels).item()),
    }


def codec(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """The original in the codec `codec`, at the size of the tokens up to the step `step`."""
    name, step = arguments["codec"], int(arguments["step"])
    if name not in get_args(Codec):
        raise RefusalError("refused_codec", got=repr(name), names=", ".join(CODECS))
    if workspace.pixels is None:
        raise RefusalError("refused_codec_original")
    require_codec(name)
    pixels = workspace.pixels.cpu()
    size = packed_size(tokens_until(workspace, step), workspace.step.tokens.vocab_size)
    coded = workspace.cached(("codec", name, step), lambda: code_near(pixels[0], name, size))
    return {
        "codec": name,
        "title": TITLES[name],
        "step": step,
        "bytes": coded.num_bytes,
        "psnr": finite(psnr(coded.image[None], pixels).item()),
        "picture": data_url(coded.image),
    }
