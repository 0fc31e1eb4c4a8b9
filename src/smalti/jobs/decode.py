"""Decode a token file into images: the inverse of `encode.py`."""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from smalti.codec import coding_tables, find_codec
from smalti.data import file_names, save_image
from smalti.data.decode import IMAGE_SUFFIXES
from smalti.formats import (
    OtherModelError,
    TokenFile,
    TokenFileError,
    TokenImage,
    check_no_input,
    check_replaceable,
    needs_codec,
    read_token_file,
    replace_folder,
)
from smalti.ops.device import find_device
from smalti.tokenizers import Tokenizer, to_tokens
from smalti.zoo import BOXED, filled, open_tokenizer, saved_folder

FROM_FILE = "auto"
"""In place of a tokenizer's name: the built-in tokenizer that made the token file."""


@dataclass(frozen=True)
class DecodeConfig:
    """Decode a token file into images, with the tokenizer that made it."""

    run: str
    """Tokenizer that made the tokens: a built-in name, a folder, a published checkpoint, or a name on the Hugging Face
    hub; "auto": the built-in one with the fingerprint in the file."""
    tokens: Path
    """Token file to read."""
    out: Path
    """Image file to write (the suffix sets the format), or a folder for one PNG file per image."""
    codec: str = ""
    """Codec of a file with coding "context"; empty: codec.safetensors in the tokenizer's folder."""
    force: bool = False
    """Replace existing images."""
    device: str = "auto"
    """Device to compute on: "cpu", "cuda", ...; "auto": cuda if available."""


@dataclass(frozen=True)
class DecodedImage:
    """An image that was written."""

    name: str
    """Name of the image in the token file."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    path: Path
    """Path of the image file."""


def decode(config: DecodeConfig, on_image: Callable[[DecodedImage], None] | None = None) -> tuple[DecodedImage, ...]:
    """Decode every image of a token file.

    One image is written to `out`, or into `out` if that is an existing folder. Several images are written into the
    folder `out`. A new folder appears when it is complete; in an existing folder, files of other names are kept.

    Args:
        config: which tokenizer, token file and output.
        on_image: called with each image as soon as it is written.

    Raises:
        FileNotFoundError: no such run, codec, token file, or folder to write to.
        FileExistsError: an image exists and `force` is off; checked before anything is written.
        TokenFileError: not a token file, truncated, altered, or made with another model.
        ValueError: several images but `out` has an image suffix, or a suffix that is no image format.
    """
    check_no_input(config.out, [config.tokens])
    tokenizer, token_file = _read(config)
    folder, names = _destination(config, token_file)
    tokenizer = tokenizer.to(find_device(config.device))
    decoded = []
    with nullcontext(folder) if folder.is_dir() else replace_folder(folder) as target:
        for image, name in zip(token_file.images, names, strict=True):
            pixels = _decode_image(tokenizer, image, token_file.vocab_size)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            save_image(target / name, pixels[0], force=config.force)
            decoded.append(DecodedImage(image.name, image.image_size, folder / name))
            if on_image is not None:
                on_image(decoded[-1])
    return tuple(decoded)


def _read(config: DecodeConfig) -> tuple[Tokenizer, TokenFile]:
    """The tokens, and the tokenizer that made them."""
    if config.run != FROM_FILE:
        return _read_with(config.run, config)
    names = [name for name in BOXED if filled(name)]
    for name in names:
        with suppress(OtherModelError):
            return _read_with(name, config)
    if needs_codec(config.tokens):
        raise TokenFileError(
            f"{config.tokens}: coded by context with a codec that no built-in tokenizer has; name the "
            "tokenizer that made it, or its codec with codec=FILE"
        )
    known = f"the built-in tokenizers ({', '.join(names) or 'this installation has none'})"
    raise TokenFileError(f"{config.tokens}: made by none of {known}; name the tokenizer that made it")


def _read_with(run: str, config: DecodeConfig) -> tuple[Tokenizer, TokenFile]:
    tokenizer = open_tokenizer(run)
    codec = None
    if needs_codec(config.tokens):
        try:
            codec = find_codec(saved_folder(run), config.codec)
        except FileNotFoundError as error:
            if config.codec:
                raise
            raise TokenFileError(
                f"{config.tokens}: coded by context, and {run} has no codec; name the tokenizer that made it, "
                "or its codec with codec=FILE"
            ) from error
    return tokenizer, read_token_file(config.tokens, tokenizer.fingerprint, coding_tables(tokenizer), codec)


def _destination(config: DecodeConfig, token_file: TokenFile) -> tuple[Path, tuple[str, ...]]:
    """The output folder, which may not exist yet, and the file names in it; refuses files that may not be written."""
    images = token_file.images
    if not images:
        raise TokenFileError(f"{config.tokens}: holds no image")
    if not config.out.is_dir():
        check_replaceable(config.out, config.force)
        if len(images) == 1:
            return config.out.parent, (config.out.name,)
        if config.out.exists() or config.out.suffix.lower() in IMAGE_SUFFIXES:
            raise ValueError(
                f"out: got {config.out}, expected a folder for the {len(images)} images of {config.tokens}"
            )
    names = file_names(tuple(image.name for image in images))
    for path in (config.out / name for name in names):
        if not path.resolve().is_relative_to(config.out.resolve()):  # through a link, or a drive on Windows
            raise ValueError(f"{config.tokens}: {path} is not inside {config.out}")
        if path.exists():
            check_replaceable(path, config.force)
    return config.out, names


def _decode_image(tokenizer: Tokenizer, image: TokenImage, vocab_size: int) -> UInt8[Tensor, "1 c h w"]:
    if image.channels != tokenizer.image_channels:
        raise TokenFileError(
            f"malformed: {image.name} has {image.channels} channels, expected {tokenizer.image_channels} of its model"
        )
    return tokenizer.decode(to_tokens(image, vocab_size).to(next(tokenizer.parameters()).device))
