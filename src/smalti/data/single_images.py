"""Single image files: read as a batch of one, named in a token file, and named for decoding."""

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch
from jaxtyping import UInt8
from torch import Tensor

from smalti.data.decode import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES, load_image


def read_pixels(
    path: str | Path, channels: int, max_pixels: int = DEFAULT_MAX_PIXELS
) -> UInt8[Tensor, "1 {channels} h w"]:
    """An image file as a batch of one: uint8 (1, channels, H, W).

    Raises:
        ValueError: not an image, or more than `max_pixels`. The message names the file.
        OSError: the file cannot be opened.
    """
    return torch.tensor(load_image(path, channels, max_pixels)).permute(2, 0, 1)[None]


def image_names(paths: Sequence[str | Path]) -> tuple[str, ...]:
    """Names for the images of one token file: their paths relative to the deepest folder that holds them all.

    >>> image_names(["photos/cats/1.png", "photos/dogs/1.png"])
    ('cats/1.png', 'dogs/1.png')
    """
    absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 (links are not followed: the name is the user's)
    root = os.path.commonpath([os.path.dirname(path) for path in absolute])  # noqa: PTH120
    return tuple(_printable(Path(path).relative_to(root).as_posix()) for path in absolute)


def file_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the decoded PNG files: the images' names with a new suffix, and a number if two would be equal.

    >>> file_names(("cat.jpg", "cat.png", "v1.2"))
    ('cat.png', 'cat-2.png', 'v1.2.png')
    """
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    chosen = []
    for name in names:
        suffix = PurePosixPath(name).suffix
        stem = name[: -len(suffix)] if suffix.lower() in IMAGE_SUFFIXES else name
        file_name = f"{stem}.png"
        while file_name.casefold() in taken:  # some file systems do not tell "A" from "a"
            numbers[stem] += 1
            file_name = f"{stem}-{numbers[stem] + 1}.png"
        taken.add(file_name.casefold())
        chosen.append(file_name)
    return tuple(chosen)


def _printable(name: str) -> str:
    """A file name in which invalid bytes and control characters are replaced by escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(repr(c)[1:-1] if unicodedata.category(c) == "Cc" else c for c in text)
