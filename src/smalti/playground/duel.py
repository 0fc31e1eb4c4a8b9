"""Panel 6, Duel: one picture through two tokenizers, with size, quality and time of each side."""

import math
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from smalti.data.source import to_array
from smalti.formats import TokenFile
from smalti.metrics import psnr, ssim
from smalti.metrics.image_quality import SSIM_WINDOW
from smalti.playground.look import TOP_ERROR, finite
from smalti.playground.opened import Opened
from smalti.playground.pictures import data_url, difference, heat_map, resized
from smalti.playground.words import RefusalError
from smalti.playground.workspace import Workspace
from smalti.tokenizers import Tokenizer, Tokens, to_token_image


@dataclass(frozen=True, eq=False)
class Side:
    """One tokenizer on the picture."""

    name: str
    """Name of the tokenizer."""
    tokens: Tokens
    """Tokens of the picture."""
    reconstruction: UInt8[Tensor, "c h w"]
    """The decoded picture, with as many channels as the tokenizer has."""
    error: Float[Tensor, "h w"]
    """Absolute error per pixel, averaged over channels, 0 to 255."""
    psnr: float
    """PSNR in dB; infinite for an exact reconstruction."""
    ssim: float | None
    """SSIM; None for a picture with a side below 11 pixels."""
    codes_used: int
    """Number of different codes among the tokens."""
    file_bytes: int
    """Size of the packed token file."""
    seconds: float
    """Time of encoding and decoding."""

    @property
    def bits_per_pixel(self) -> float:
        """Size of the token file in bits per pixel."""
        return 8 * self.file_bytes / math.prod(self.tokens.image_size)


def show(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Both sides, one after the other: the tokenizers `left` and `right` on the picture.

    Raises:
        ValueError: no picture, no such tokenizer, or one that cannot encode this picture.
    """
    left, right = (_model(workspace, str(arguments[side])) for side in ("left", "right"))
    picture = resized(picture_of(workspace), min(left.longest, right.longest))
    return {
        "width": picture.width,
        "height": picture.height,
        "original": data_url(pixels_of(picture, 3)),
        "topError": TOP_ERROR,
        "sides": [shown(measured(picture, opened.name, opened.tokenizer)) for opened in (left, right)],
    }


def shown(side: Side) -> dict[str, Any]:
    """A side as data for the page; an infinite PSNR is None, as JSON has no infinity."""
    return {
        "name": side.name,
        "picture": data_url(side.reconstruction),
        "error": data_url(heat_map(side.error, TOP_ERROR)),
        "psnr": finite(side.psnr),
        "ssim": side.ssim,
        "tokens": side.tokens.num_tokens,
        "vocabulary": side.tokens.vocab_size,
        "codes": side.codes_used,
        "bytes": side.file_bytes,
        "bitsPerPixel": side.bits_per_pixel,
        "milliseconds": 1000 * side.seconds,
    }


def picture_of(workspace: Workspace) -> Image.Image:
    """The picture of the tab: the one that was opened, else what its tokens show."""
    if workspace.picture is not None:
        return workspace.picture.image
    image = workspace.step.image[0].cpu().expand(3, -1, -1)
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def measured(picture: Image.Image, name: str, tokenizer: Tokenizer) -> Side:
    """One side of the duel.

    Raises:
        ValueError: the tokenizer cannot encode this picture.
    """
    pixels = pixels_of(picture, tokenizer.image_channels)[None].to(next(tokenizer.parameters()).device)
    try:
        tokenizer.encode(pixels[:, :, :1, :1])  # the first call computes the fingerprint: not part of the time
        start = perf_counter()
        tokens = tokenizer.encode(pixels)
        reconstruction = tokenizer.decode(tokens)
        seconds = perf_counter() - start
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    image = to_token_image("picture", tokens, tokenizer.image_channels)
    return Side(
        name,
        tokens,
        reconstruction[0],
        difference(reconstruction[0], pixels[0]),
        psnr(reconstruction, pixels).item(),
        ssim(reconstruction, pixels).item() if min(pixels.shape[2:]) >= SSIM_WINDOW else None,
        len(tokens.flatten().unique()),
        len(TokenFile(tokenizer.fingerprint, tokenizer.vocab_size, (image,)).to_bytes()),
        seconds,
    )


def pixels_of(picture: Image.Image, channels: int) -> UInt8[Tensor, "{channels} h w"]:
    """The picture as pixels: RGB, or grey for a tokenizer of grey images."""
    array = to_array(picture if channels == 3 else picture.convert("L"))
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


def _model(workspace: Workspace, name: str) -> Opened:
    if name not in workspace.models:
        raise RefusalError("refused_model", got=repr(name), names=", ".join(workspace.models))
    return workspace.models[name]
