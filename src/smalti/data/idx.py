"""MNIST's own file format, IDX (LeCun et al. 1998), as a source: four files with the images and labels of two splits.

Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) is distributed this way, and Debian packages it. An IDX file is a
big-endian header (two zero bytes, the type, 8 for uint8, the number of axes, one uint32 per axis), then the values.
"""

import gzip
import math
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from smalti.checks import one_of
from smalti.data.decode import check_decoding
from smalti.data.source import ImageSource

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Folder of the four files of Debian's package dataset-fashion-mnist."""

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

SPLIT_PREFIXES = {"train": "train", "test": "t10k"}
UINT8_TYPE = 8


class IdxImages(ImageSource):
    """One split of a folder with MNIST's four files, plain or with .gz, held in memory.

    Keys are split/number. Labels are those of the label file.

    Args:
        folder: where the files are.
        split: "train" (train-*) or "test" (t10k-*).
        channels: 1 for grey as stored, 3 for three equal channels.
        class_names: names of the classes, if known.

    Raises:
        FileNotFoundError: a file of this split is missing.
        ValueError: a file is damaged or has another format, or the two files do not match.
    """

    def __init__(self, folder: str | Path, split: str = "train", channels: int = 3, class_names: tuple[str, ...] = ()):
        super().__init__()
        check_decoding(channels)
        one_of(tuple(SPLIT_PREFIXES), split=split)
        self.split = split
        self.channels = channels
        self._images = read_idx(_find(Path(folder), split, "images-idx3"), axes=3)
        self._labels = read_idx(_find(Path(folder), split, "labels-idx1"), axes=1)
        if len(self._images) != len(self._labels):
            raise ValueError(
                f"{folder}: got {len(self._images)} images but {len(self._labels)} labels in split {split}"
            )
        if self._images.size == 0:
            raise ValueError(f"{folder}: no image in split {split}, the shape is {self._images.shape}")
        if class_names and self._labels.max() >= len(class_names):
            raise ValueError(f"{folder}: got label {self._labels.max()}, expected 0...{len(class_names) - 1}")
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self._images)

    def key(self, index: int) -> str:
        return f"{self.split}/{index:05d}"

    def label(self, index: int) -> int | None:
        return int(self._labels[index])

    def _read(self, index: int, enough: int | None) -> Image.Image:
        grey = Image.fromarray(self._images[index])
        return grey if self.channels == 1 else grey.convert("RGB")


def is_idx_folder(folder: Path) -> bool:
    """Whether `folder` holds the image file of at least one split."""
    return any(path.is_file() for split in SPLIT_PREFIXES for path in _candidates(folder, split, "images-idx3"))


def read_idx(path: str | Path, axes: int) -> UInt8[np.ndarray, "..."]:
    """An IDX file of uint8 values, gzipped if it ends in .gz, as an array with `axes` axes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: wrong magic number, or another length than its header states.
    """
    path = Path(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return _parse_idx(file, path, axes)  # type: ignore[arg-type]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged gzip data ({error})") from error


def _parse_idx(file: BufferedIOBase, path: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    magic, expected = file.read(4), bytes([0, 0, UINT8_TYPE, axes])
    if magic != expected:
        raise ValueError(f"{path}: begins with {magic.hex() or 'nothing'}, expected the IDX magic {expected.hex()}")
    header = file.read(4 * axes)
    if len(header) < 4 * axes:
        raise ValueError(f"{path}: ends inside its header")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    values = file.read()
    if len(values) != math.prod(shape):
        raise ValueError(f"{path}: got {len(values)} values, expected the shape {shape} of its header")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _find(folder: Path, split: str, part: str) -> Path:
    candidates = _candidates(folder, split, part)
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder}: no {candidates[0].name} (or .gz) here")


def _candidates(folder: Path, split: str, part: str) -> list[Path]:
    """Possible names of this file: with a dash as published, or with a dot as in some copies; plain or gzipped."""
    name, kind = part.split("-")
    stems = [f"{SPLIT_PREFIXES[split]}-{name}{joint}{kind}-ubyte" for joint in "-."]
    return [folder / (stem + end) for stem in stems for end in ("", ".gz")]
