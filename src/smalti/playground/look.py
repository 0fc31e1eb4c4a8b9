"""Panel 1, Look, and the state of the page that all panels share: pictures, token maps and numbers.

Panel 2, Point, needs nothing else from Python: the browser has all tokens, and `codes.py` has the pictures of codes.
"""

import base64
import binascii
import math
from dataclasses import asdict
from typing import Any

from smalti.data import EmbeddedPhotographs
from smalti.formats import packed_size
from smalti.metrics import psnr, ssim
from smalti.metrics.image_quality import SSIM_WINDOW
from smalti.playground.pictures import data_url, difference, heat_map
from smalti.playground.words import RefusalError
from smalti.playground.workspace import Workspace

MOST_BYTES = 2**26
"""Largest picture file that the page accepts."""
TOP_ERROR = 64.0
"""Error in grey levels that has the brightest colour of the heat map."""


def open_picture(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Open and encode a picture file: `name`, and `data` in base64.

    Raises:
        ValueError: not a picture, or one that this tokenizer cannot encode.
    """
    name, data = str(arguments["name"]), str(arguments["data"])
    try:
        content = base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise RefusalError("refused_upload", name=name, reason=str(error)) from error
    if len(content) > MOST_BYTES:
        raise RefusalError("refused_large", name=name, bytes=len(content), most=MOST_BYTES)
    workspace.open_picture(name, content)
    return state(workspace)


def open_example(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Open the photograph of an astronaut from the wheel of scikit-image.

    Raises:
        ValueError: scikit-image is not installed. The message names the extra.
    """
    photographs = EmbeddedPhotographs("test")
    workspace.open_image(photographs.key(0).rpartition("/")[2], photographs.picture(0))
    return state(workspace)


def choose_model(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Work with the tokenizer `model`; the picture is encoded again."""
    workspace.choose(str(arguments["model"]))
    return state(workspace) if workspace.steps else {"model": workspace.opened.name}


def state(workspace: Workspace) -> dict[str, Any]:
    """All that the page shows of a picture: the original and what changes with every step."""
    picture, pixels = workspace.picture, workspace.pixels
    encoded = workspace.encoded.image
    height, width = encoded.shape[2:]
    original_size = (width, height) if picture is None or pixels is None else picture.original_size
    tokenizer = workspace.opened.tokenizer
    spatial = workspace.layers[0].spatial
    rows, columns = tokenizer.latent_grid((height, width)) if spatial else (0, 0)
    return {
        "model": workspace.opened.name,
        "name": "" if picture is None else picture.name,
        "width": width,
        "height": height,
        "originalSize": list(original_size),
        "covered": [columns * tokenizer.stride, rows * tokenizer.stride] if spatial else [width, height],
        "vocabulary": tokenizer.vocab_size,
        "stride": tokenizer.stride,
        "original": data_url((encoded if pixels is None else pixels)[0]),
        "layers": [asdict(layer) for layer in workspace.layers],
        "topError": TOP_ERROR,
        **current(workspace),
    }


def current(workspace: Workspace) -> dict[str, Any]:
    """What every step changes: tokens, reconstruction, error, numbers, and how many steps can be undone."""
    step, encoded = workspace.step, workspace.encoded
    sequence = step.tokens.flatten()[0]
    size = packed_size(len(sequence), step.tokens.vocab_size)
    return {
        "tokens": sequence.tolist(),
        "edited": (sequence != encoded.tokens.flatten()[0]).nonzero().flatten().tolist(),
        "reconstruction": data_url(step.image[0]),
        "error": None if workspace.pixels is None else _error(workspace),
        "numbers": {
            "psnr": None if workspace.pixels is None else finite(psnr(step.image, workspace.pixels).item()),
            "tokens": len(sequence),
            "bytes": size,
            "bitsPerPixel": 8 * size / math.prod(step.image.shape[2:]),
            "codes": len(sequence.unique()),
        },
        "undo": workspace.current,
        "redo": len(workspace.steps) - 1 - workspace.current,
    }


def finite(value: float) -> float | None:
    """The number, or None for an infinite one: the PSNR of equal images."""
    return value if math.isfinite(value) else None


def _error(workspace: Workspace) -> str:
    assert workspace.pixels is not None
    return data_url(heat_map(difference(workspace.step.image[0], workspace.pixels[0]), TOP_ERROR))


def similarity(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """SSIM of the current picture, by itself because it takes longer than all other numbers together."""
    return {"ssim": workspace.cached("ssim", lambda: _ssim(workspace))}


def _ssim(workspace: Workspace) -> float | None:
    pixels = workspace.pixels
    if pixels is None or min(pixels.shape[2:]) < SSIM_WINDOW:
        return None
    return float(ssim(workspace.step.image, pixels))
