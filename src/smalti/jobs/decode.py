"""A token file to images: the inverse of `encode.py`."""

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
    check_replaceable,
    needs_codec,
    read_token_file,
    replace_folder,
)
from smalti.ops.device import find_device
from smalti.tokenizers import Tokenizer, to_tokens
from smalti.zoo import BOXED, filled, open_tokenizer, saved_folder

__all__ = ["FROM_FILE", "DecodeConfig", "DecodedImage", "decode"]

FROM_FILE = "auto"
"""Instead of a tokenizer's name: the one that the token file names."""


@dataclass(frozen=True)
class DecodeConfig:
    """Turn a token file back into its images, with the model that made it."""

    run: str
    """The tokenizer that made the tokens: a name of the box, a folder, a published checkpoint, a name on the hub; auto:
    that of the box whose fingerprint the file bears."""
    tokens: Path
    """The token file."""
    out: Path
    """The image to write, of the format that its suffix names; or a folder, which gets one PNG an image."""
    codec: str = ""
    """The codec of tokens that were coded by context; empty: codec.safetensors in the tokenizer's folder."""
    force: bool = False
    """Replace existing images."""
    device: str = "auto"
    """Where to compute: "cpu", "cuda", ..., or "auto" for cuda if there is one."""


@dataclass(frozen=True)
class DecodedImage:
    """An image that was written."""

    name: str
    """Its name in the token file."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    path: Path
    """Where it is."""


def decode(config: DecodeConfig, on_image: Callable[[DecodedImage], None] | None = None) -> tuple[DecodedImage, ...]:
    """Decode every image of a token file.

    One image goes to `out`, or into `out` if that is an existing folder. Several go into the folder `out`: a new one
    appears when it is complete; in an existing one, files of other names are left alone.

    Args:
        config: which model, which tokens, where to.
        on_image: told about each image as soon as it is written.

    Raises:
        FileNotFoundError: no such run, codec, token file, or folder to write to.
        FileExistsError: an image exists and `force` is off; found before anything is written.
        TokenFileError: not a token file, truncated, altered, or made with another model.
        ValueError: several images but `out` is named like one, or a suffix that is no image format.
    """
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
    box = f"the tokenizers of the box ({', '.join(names) or 'which is empty'})"
    raise TokenFileError(
        f"{config.tokens}: made by none of {box}, expected its tokenizer: smalti decode RUN {config.tokens}"
    )


def _read_with(run: str, config: DecodeConfig) -> tuple[Tokenizer, TokenFile]:
    tokenizer = open_tokenizer(run)
    codec = find_codec(saved_folder(run), config.codec) if needs_codec(config.tokens) else None
    return tokenizer, read_token_file(config.tokens, tokenizer.fingerprint, coding_tables(tokenizer), codec)


def _destination(config: DecodeConfig, token_file: TokenFile) -> tuple[Path, tuple[str, ...]]:
    """A folder, which may not exist yet, and the files to write there; refuses what may not be written."""
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
            f"malformed: {image.name} has {image.channels} channels, its model makes {tokenizer.image_channels}"
        )
    return tokenizer.decode(to_tokens(image, vocab_size).to(next(tokenizer.parameters()).device))
