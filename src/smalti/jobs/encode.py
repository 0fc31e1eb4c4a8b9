"""Images to one token file. The way back is `decode.py`; `reconstruct.py` goes both ways without a file between."""

import math
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from smalti.codec import CODEC_FILE, ContextCodec, find_codec
from smalti.data import DEFAULT_MAX_PIXELS, load_image
from smalti.formats import Coding, TokenFile, TokenImage, check_replaceable, packed_size, write_token_file
from smalti.ops.device import find_device
from smalti.tokenizers import Tokenizer, Tokens
from smalti.zoo import open_tokenizer, saved_folder

__all__ = [
    "EncodeConfig",
    "EncodeResult",
    "EncodedImage",
    "chosen_coding",
    "coding_tables",
    "encode",
    "image_names",
    "read_pixels",
    "to_token_image",
]


@dataclass(frozen=True)
class EncodeConfig:
    """Turn images, each at its own size, into one token file."""

    run: str
    """The tokenizer: a name of the box, a folder with a saved model, a published checkpoint, or a name on the hub."""
    images: tuple[str, ...]
    """Image files: PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF."""
    out: Path
    """The token file to write."""
    coding: Coding | Literal["auto"] = "auto"
    """How tokens are stored: "packed", ceil(log2 K) bits each; "adaptive", by a range coder that learns how often each
    occurs; "learned", by one that starts from how often each occurred in the tokenizer's training; "context", by one
    that a codec tells how likely each is among the tokens around it; "auto", by context where the tokenizer comes with
    a codec and a range coder is installed, else packed."""
    codec: str = ""
    """The codec of coding "context", made by smalti train-codec; empty: codec.safetensors in the tokenizer's folder."""
    force: bool = False
    """Replace an existing file."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Refuse an image of more pixels."""
    device: str = "auto"
    """Where to compute: "cpu", "cuda", ..., or "auto" for cuda if there is one."""

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("images: got none, expected at least one file")
        if self.codec and self.coding not in ("context", "auto"):
            raise ValueError(f"codec: got {self.codec!r}, expected none with coding {self.coding!r}")


@dataclass(frozen=True)
class EncodedImage:
    """What an image became."""

    name: str
    """Its name in the token file."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    num_tokens: int
    """Tokens of all scales together."""
    num_bytes: int
    """Bytes of its tokens at ceil(log2 K) bits each, without name, grids and the file's header."""

    @property
    def bits_per_pixel(self) -> float:
        """Bits of `num_bytes` for each pixel."""
        return 8 * self.num_bytes / math.prod(self.image_size)


@dataclass(frozen=True)
class EncodeResult:
    """What was written."""

    images: tuple[EncodedImage, ...]
    """One entry an image, in the order given."""
    file_bytes: int
    """Size of the whole token file."""
    vocab_size: int
    """K."""

    @property
    def log2_bytes(self) -> float:
        """Bytes of the tokens alone at log2 K bits each, which is what they cost if all are equally likely."""
        return sum(image.num_tokens for image in self.images) * math.log2(self.vocab_size) / 8


def encode(config: EncodeConfig, on_image: Callable[[EncodedImage], None] | None = None) -> EncodeResult:
    """Encode images into a token file; if anything fails, no file is written.

    Args:
        config: which model, which images, where to.
        on_image: told about each image as soon as it is encoded.

    Raises:
        FileNotFoundError: no such run, codec, image, or folder to write to.
        FileExistsError: the token file exists and `force` is off.
        ValueError: a file that is not an image, or too large a one; the message names it. A tokenizer that cannot code
            as asked.
    """
    check_replaceable(config.out, config.force)
    tokenizer = open_tokenizer(config.run).to(find_device(config.device))
    tables = coding_tables(tokenizer)
    coding, codec = chosen_coding(config.run, config.coding, config.codec)
    if coding == "learned" and tables is None:
        raise ValueError(
            "coding: got 'learned', but this tokenizer keeps no count of its codes; take adaptive or packed"
        )
    token_images, encoded = [], []
    for name, path in zip(image_names(config.images), config.images, strict=True):
        pixels = read_pixels(path, tokenizer.image_channels, config.max_pixels)
        tokens = tokenizer.encode(pixels.to(find_device(config.device)))
        token_images.append(to_token_image(name, tokens, tokenizer.image_channels))
        size = packed_size(tokens.num_tokens, tokenizer.vocab_size)
        encoded.append(EncodedImage(name, tokens.image_size, tokens.num_tokens, size))
        if on_image is not None:
            on_image(encoded[-1])
    fingerprint = tokens.fingerprint or tokenizer.fingerprint  # those of a GPU bear none
    token_file = TokenFile(fingerprint, tokenizer.vocab_size, tuple(token_images), coding)
    write_token_file(config.out, token_file, config.force, tables, codec)
    return EncodeResult(tuple(encoded), config.out.stat().st_size, tokenizer.vocab_size)


def chosen_coding(run: str, coding: Coding | Literal["auto"], codec: str = "") -> tuple[Coding, ContextCodec | None]:
    """The coding of token files of a tokenizer, and the codec that coding by context needs.

    Args:
        run: the tokenizer's name.
        coding: what was asked for, see `EncodeConfig`.
        codec: a codec that does not lie in the tokenizer's folder.

    Raises:
        FileNotFoundError, ValueError: no codec where one is needed, or a damaged one.
    """
    folder = saved_folder(run)
    if coding == "auto":
        able = find_spec("constriction") is not None and (folder / CODEC_FILE).is_file()
        coding = "context" if codec or able else "packed"
    return coding, find_codec(folder, codec) if coding == "context" else None


def coding_tables(tokenizer: Tokenizer) -> list[Int64[np.ndarray, " k"]] | None:
    """What a range coder starts from: see `Quantizer.code_counts`."""
    counts = tokenizer.quantizer.code_counts()
    return None if counts is None else [count.numpy() for count in counts]


def read_pixels(
    path: str | Path, channels: int, max_pixels: int = DEFAULT_MAX_PIXELS
) -> UInt8[Tensor, "1 {channels} h w"]:
    """An image file as a batch of one: uint8 (1, channels, H, W).

    Raises:
        ValueError: not an image, or one of more than `max_pixels`; the message names the file.
        OSError: it cannot be opened.
    """
    return torch.tensor(load_image(path, channels, max_pixels)).permute(2, 0, 1)[None]


def to_token_image(name: str, tokens: Tokens, channels: int) -> TokenImage:
    """Tokens of one image (B = 1) as they stand in a token file. `smalti.jobs.decode.to_tokens` is the inverse."""
    if len(tokens) != 1:
        raise ValueError(f"tokens: got those of {len(tokens)} images, expected one")
    return TokenImage(name, tokens.image_size, channels, tokens.grids, tokens.flatten()[0].cpu().numpy())


def image_names(paths: Sequence[str | Path]) -> tuple[str, ...]:
    """Names for the images of one token file: their paths relative to the deepest folder that holds them all.

    >>> image_names(["photos/cats/1.png", "photos/dogs/1.png"])
    ('cats/1.png', 'dogs/1.png')
    """
    absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 (links are not followed: the name is the user's)
    root = os.path.commonpath([os.path.dirname(path) for path in absolute])  # noqa: PTH120
    return tuple(_printable(Path(path).relative_to(root).as_posix()) for path in absolute)


def _printable(name: str) -> str:
    """A file name without bytes that are no text and without control characters; both are spelled out instead."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(repr(c)[1:-1] if unicodedata.category(c) == "Cc" else c for c in text)
