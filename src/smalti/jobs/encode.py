"""Encode images into one token file. `decode.py` is the inverse; `reconstruct.py` does both without a token file."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smalti.codec import chosen_coding, coding_tables
from smalti.data import DEFAULT_MAX_PIXELS, image_names, read_pixels
from smalti.formats import Coding, TokenFile, check_no_input, check_replaceable, packed_size, write_token_file
from smalti.ops.device import find_device
from smalti.tokenizers import to_token_image
from smalti.zoo import open_tokenizer


@dataclass(frozen=True)
class EncodeConfig:
    """Encode images, each at its own size, into one token file."""

    run: str
    """Tokenizer: a built-in name, a folder with a saved model, a published checkpoint, or a name on the Hugging Face
    hub."""
    images: tuple[str, ...]
    """Image files: PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF."""
    out: Path
    """Token file to write."""
    coding: Coding | Literal["auto"] = "auto"
    """How tokens are stored. "packed": ceil(log2 K) bits per token; "adaptive": range coder with frequencies learned
    from the file; "learned": the same, starting from the frequencies in training; "context": range coder with a codec
    that predicts each token from its neighbours; "auto": context if the tokenizer has a codec and a range coder is
    installed, else packed."""
    codec: str = ""
    """Codec for coding "context", from smalti train-codec; empty: codec.safetensors in the tokenizer's folder."""
    force: bool = False
    """Replace an existing file."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Refuse images with more pixels than this."""
    device: str = "auto"
    """Device to compute on: "cpu", "cuda", ...; "auto": cuda if available."""

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("images: got none, expected at least one file")
        if self.codec and self.coding not in ("context", "auto"):
            raise ValueError(f"codec: got {self.codec!r}, expected none with coding {self.coding!r}")


@dataclass(frozen=True)
class EncodedImage:
    """Size of an encoded image."""

    name: str
    """Name of the image in the token file."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    num_tokens: int
    """Number of tokens, over all scales."""
    num_bytes: int
    """Bytes of the tokens at ceil(log2 K) bits each, without the name, the grids and the file's header."""

    @property
    def bits_per_pixel(self) -> float:
        """`num_bytes` in bits per pixel."""
        return 8 * self.num_bytes / math.prod(self.image_size)


@dataclass(frozen=True)
class EncodeResult:
    """The result of an encoding."""

    images: tuple[EncodedImage, ...]
    """One entry per image, in the order given."""
    file_bytes: int
    """Size of the whole token file."""
    vocab_size: int
    """Number of codes, K."""

    @property
    def log2_bytes(self) -> float:
        """Bytes of the tokens alone at log2 K bits each: their cost if all codes are equally likely."""
        return sum(image.num_tokens for image in self.images) * math.log2(self.vocab_size) / 8


def encode(config: EncodeConfig, on_image: Callable[[EncodedImage], None] | None = None) -> EncodeResult:
    """Encode images into a token file; if anything fails, no file is written.

    Args:
        config: which tokenizer, images and token file.
        on_image: called with each image as soon as it is encoded.

    Raises:
        FileNotFoundError: no such run, codec, image, or folder to write to.
        FileExistsError: the token file exists and `force` is off.
        ValueError: a file that is not an image, or an image that is too large (the message names the file); a tokenizer
            that does not support the coding.
    """
    check_no_input(config.out, config.images)
    check_replaceable(config.out, config.force)
    tokenizer = open_tokenizer(config.run).to(find_device(config.device))
    tables = coding_tables(tokenizer)
    coding, codec = chosen_coding(config.run, config.coding, config.codec)
    if coding == "learned" and tables is None:
        raise ValueError(
            "coding: got 'learned', expected 'adaptive' or 'packed': this tokenizer has no code frequencies of training"
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
    fingerprint = tokens.fingerprint or tokenizer.fingerprint  # tokens made on a GPU carry none
    token_file = TokenFile(fingerprint, tokenizer.vocab_size, tuple(token_images), coding)
    write_token_file(config.out, token_file, config.force, tables, codec)
    return EncodeResult(tuple(encoded), config.out.stat().st_size, tokenizer.vocab_size)
