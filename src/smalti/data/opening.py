"""`open_images`: from what a user types after `smalti train` to an `ImageSource`.

    some/folder                 all picture files below it
    photo.jpg                   that one picture
    embedded                    the embedded photographs for training; embedded:test the two held-out ones
    fashion-mnist               from Debian's package; fashion-mnist:test its test split
    folder/with/idx/files       a folder with MNIST's four files; folder:test its test split

A folder that happens to be called `embedded` is reached as `./embedded`, or as a `Path`.
"""

from pathlib import Path

from smalti.data.decode import DEFAULT_MAX_PIXELS
from smalti.data.embedded import EmbeddedPhotographs
from smalti.data.files import ImageFiles
from smalti.data.idx import FASHION_MNIST_CLASSES, FASHION_MNIST_FOLDER, IdxImages, is_idx_folder
from smalti.data.source import ImageSource

__all__ = ["open_images"]

SPLITS = ("train", "test")


def open_images(data: str | Path, *, channels: int = 3, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageSource:
    """Open a set of images by path or by name; the table above lists what `data` can be.

    Args:
        data: a path, or one of the names, with `:train` (the default) or `:test` after it where there are two splits.
        channels: 3 gives RGB (grey is expanded), 1 gives grey (colour is reduced to luma).
        max_pixels: picture files with more pixels count as unreadable.

    Raises:
        FileNotFoundError: nothing is there, or the data set is not installed.
        ValueError: a folder without an image, an unknown split, a damaged IDX file, a bad argument.
    """
    text = str(data)
    name, colon, split = text.rpartition(":")
    if not colon:
        name, split = text, ""
    is_path = isinstance(data, Path) and data.exists()
    if name == "embedded" and not is_path:
        return EmbeddedPhotographs(_known_split(text, split), channels)
    if name == "fashion-mnist" and not is_path:
        return _fashion_mnist(_known_split(text, split), channels)
    if Path(text).exists():  # a colon can be part of a path
        name, split = text, ""
    if Path(name).is_dir() and is_idx_folder(Path(name)):
        return IdxImages(name, _known_split(text, split), channels)
    if split in SPLITS and Path(name).exists():
        raise ValueError(f"{text}: only embedded, fashion-mnist and folders with IDX files have splits")
    return ImageFiles(text, channels, max_pixels)


def _known_split(data: str, split: str) -> str:
    if split and split not in SPLITS:
        raise ValueError(f"{data}: no split {split!r}, there are {' and '.join(SPLITS)}")
    return split or "train"


def _fashion_mnist(split: str, channels: int) -> ImageSource:
    if not FASHION_MNIST_FOLDER.is_dir():
        where = f"{FASHION_MNIST_FOLDER} does not exist"
        raise FileNotFoundError(
            f"fashion-mnist: {where}; install Debian's package dataset-fashion-mnist, "
            "or give the path of a folder with the four IDX files"
        )
    return IdxImages(FASHION_MNIST_FOLDER, split, channels, FASHION_MNIST_CLASSES)
