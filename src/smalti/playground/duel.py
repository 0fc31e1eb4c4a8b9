"""Panel 6, Duel: one picture through two tokenizers, with size, quality and time of each side."""

import math
from dataclasses import dataclass
from time import perf_counter

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from smalti.data.source import to_array
from smalti.formats import TokenFile
from smalti.metrics import psnr, ssim
from smalti.metrics.image_quality import SSIM_WINDOW
from smalti.ops.pixels import to_float
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

    def numbers(self) -> dict[str, float | int | str | None]:
        """The numbers for the page, by name; an infinite PSNR is None, as JSON has no infinity."""
        return {
            "name": self.name,
            "psnr": self.psnr if math.isfinite(self.psnr) else None,
            "ssim": self.ssim,
            "tokens": self.tokens.num_tokens,
            "vocab_size": self.tokens.vocab_size,
            "codes_used": self.codes_used,
            "file_bytes": self.file_bytes,
            "bits_per_pixel": self.bits_per_pixel,
            "seconds": self.seconds,
        }


def duel(
    picture: UInt8[Tensor, "3 h w"], left: tuple[str, Tokenizer], right: tuple[str, Tokenizer]
) -> tuple[Side, Side]:
    """Both sides, one after the other; each tokenizer with its name.

    Raises:
        ValueError: a tokenizer cannot encode this picture. The message begins with its name.
    """
    return measured(picture, *left), measured(picture, *right)


def measured(picture: UInt8[Tensor, "3 h w"], name: str, tokenizer: Tokenizer) -> Side:
    """One side of the duel.

    Raises:
        ValueError: the tokenizer cannot encode this picture.
    """
    pixels = channels_of(picture, tokenizer.image_channels)[None]
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
        (to_float(reconstruction) - to_float(pixels)).abs().mean(dim=(0, 1)) * 127.5,
        psnr(reconstruction, pixels).item(),
        ssim(reconstruction, pixels).item() if min(pixels.shape[2:]) >= SSIM_WINDOW else None,
        len(tokens.flatten().unique()),
        len(TokenFile(tokenizer.fingerprint, tokenizer.vocab_size, (image,)).to_bytes()),
        seconds,
    )


def error_scale(sides: tuple[Side, ...]) -> float:
    """The error that both heat maps show in their strongest colour: the largest 99th percentile of all sides."""
    return max(1.0, *(side.error.flatten().quantile(0.99).item() for side in sides))


def channels_of(picture: UInt8[Tensor, "3 h w"], channels: int) -> UInt8[Tensor, "{channels} h w"]:
    """The picture in RGB, or in grey for a tokenizer of grey images."""
    if channels == 3:
        return picture
    grey = Image.fromarray(picture.permute(1, 2, 0).numpy()).convert("L")
    return torch.from_numpy(to_array(grey).transpose(2, 0, 1).copy())
