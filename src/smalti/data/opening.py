"""`open_images`: opens the data argument of the command line as an `ImageSource`.

    some/folder                    all picture files below it; or the tar shards, Parquet or Arrow files below it
    photo.jpg                      one picture
    shard-{000000..000009}.tar     tar shards (WebDataset), also shards/*.tar
    photos.parquet                 a Parquet file, also photos/*.parquet; likewise .arrow
    hf://owner/name                a data set of the Hugging Face hub
    embedded                       the embedded photographs for training; embedded:test: the two held-out ones
    fashion-mnist                  from Debian's package; fashion-mnist:test its test split
    folder/with/idx/files          a folder with MNIST's four files; folder:test its test split

A folder whose sub-folders or files are named train, test, val has splits. The form is NAME:SPLIT?OPTIONS. Options are
for tables, joined by &: image=, label= and caption= name columns; config= and streaming=true are for the hub. A folder
named `embedded` is opened as `./embedded`, or as a `Path`.
"""

import glob
import os
import re
from pathlib import Path
from urllib.parse import parse_qsl

from smalti.data.decode import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES, check_decoding
from smalti.data.embedded import EmbeddedPhotographs
from smalti.data.files import ImageFiles
from smalti.data.hub import open_arrow, open_hub
from smalti.data.idx import FASHION_MNIST_CLASSES, FASHION_MNIST_FOLDER, IdxImages, is_idx_folder
from smalti.data.parquet import ParquetImages
from smalti.data.source import ImageSource
from smalti.data.splits import SPLIT_WORDS, choose_split
from smalti.data.tar import TarImages, expand_braces

HUB = "hf://"
SPLITS = ("train", "test")
SHARD_SUFFIXES = (".tar", ".parquet", ".arrow")
COLUMN_OPTIONS = ("image", "label", "caption")
HUB_OPTIONS = (*COLUMN_OPTIONS, "config", "streaming")


def open_images(data: str | Path, *, channels: int = 3, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageSource:
    """Open a set of images by path or by name; the table above lists what `data` can be.

    Args:
        data: a path or a name, followed by `:train` (the default) or `:test` if it has splits.
        channels: 3 for RGB (grey is expanded), 1 for grey (colour is reduced to luma).
        max_pixels: picture files with more pixels count as unreadable.

    Raises:
        FileNotFoundError: the path does not exist, or the data set is not installed.
        ValueError: a folder without an image, an unknown split, damaged files, an invalid argument, or a missing
            package (MissingPackageError).
    """
    check_decoding(channels, max_pixels)
    text = str(data)
    name, split, options = _take_apart(text)
    is_path = isinstance(data, Path) and data.exists()
    if text.startswith(HUB):
        return _from_hub(name, split, options, channels, max_pixels)
    if name in ("embedded", "fashion-mnist") and not is_path:
        split = _known_split(text, split)
        return EmbeddedPhotographs(split, channels) if name == "embedded" else _fashion_mnist(split, channels)
    if Path(name).is_dir() and is_idx_folder(Path(name)):
        return IdxImages(name, _known_split(text, split), channels)
    if any((Path(name) / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
        return open_arrow([name], split, channels, max_pixels, _columns(text, options))
    kind, shards = _shards(name)
    if kind in (".parquet", ".arrow"):
        columns = _columns(text, options)
        paths = _of_split(text, name, shards, split)
        if kind == ".arrow":
            return open_arrow(paths, split, channels, max_pixels, columns)
        return ParquetImages(paths, channels, max_pixels, columns, classes_of=shards)
    if options:
        raise ValueError(f"{text}: got options after '?', expected them only for Parquet, Arrow and {HUB}")
    if kind == ".tar":
        return TarImages(_of_split(text, name, shards, split), channels, max_pixels)
    if split and Path(name).is_file():
        raise ValueError(f"{text}: files that are named themselves have no split, only folders have")
    known = Path(name).is_dir()
    return ImageFiles(name if known else text, channels, max_pixels, split if known else "")


def _take_apart(text: str) -> tuple[str, str, dict[str, str]]:
    """NAME:SPLIT?OPTIONS -> name, split ("" if there is none) and options. An existing path is taken as a name."""
    if Path(text).exists():
        return text, "", {}
    scheme = HUB if text.startswith(HUB) else ""
    name, _, query = text.removeprefix(scheme).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    split = ""
    if ":" in name and not Path(name).exists():
        name, _, split = name.rpartition(":")
    return name, split, options


def _from_hub(name: str, split: str, options: dict[str, str], channels: int, max_pixels: int) -> ImageSource:
    text = f"{HUB}{name}"
    columns = _columns(text, {option: value for option, value in options.items() if option in COLUMN_OPTIONS})
    unknown = [option for option in options if option not in HUB_OPTIONS]
    if unknown:
        raise ValueError(f"{text}: got option {unknown[0]!r}, expected one of {', '.join(HUB_OPTIONS)}")
    streaming = options.get("streaming", "false")
    if streaming not in ("true", "false"):
        raise ValueError(f"{text}: streaming: got {streaming!r}, expected true or false")
    return open_hub(name, split or "train", options.get("config"), streaming == "true", channels, max_pixels, columns)


def _columns(data: str, options: dict[str, str]) -> dict[str, str]:
    unknown = [option for option in options if option not in COLUMN_OPTIONS]
    if unknown:
        raise ValueError(f"{data}: got option {unknown[0]!r}, expected one of {', '.join(COLUMN_OPTIONS)}")
    return options


def _shards(name: str) -> tuple[str, list[str]]:
    """The suffix and the paths of the shards that `name` denotes; ("", []) if it denotes something else."""
    path = Path(name)
    if path.is_dir():
        return _shards_below(path)
    if path.suffix.lower() not in SHARD_SUFFIXES:
        return "", []
    if path.exists():
        return path.suffix.lower(), [name]
    found: list[str] = []
    for pattern in expand_braces(name):
        matches = sorted(glob.glob(pattern))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            raise FileNotFoundError(f"{pattern}: no such file or folder")
        found += matches
    return path.suffix.lower(), found


def _shards_below(folder: Path) -> tuple[str, list[str]]:
    found: dict[str, list[str]] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for each in names:
            suffix = Path(each).suffix.lower()
            if suffix in (*SHARD_SUFFIXES, *IMAGE_SUFFIXES) and not each.startswith("."):
                kind = suffix if suffix in SHARD_SUFFIXES else "pictures"
                found.setdefault(kind, []).append(str(Path(parent, each)))
    if set(found) <= {"pictures"}:
        return "", []
    if len(found) > 1:
        counts = ", ".join(f"{len(paths)} {kind}" for kind, paths in found.items())
        raise ValueError(f"{folder}: holds {counts}; name the files of one kind, as in '{folder}/*.tar'")
    ((kind, paths),) = found.items()
    return kind, sorted(paths)


def _of_split(data: str, root: str, paths: list[str], split: str) -> list[str]:
    """The files of a split, by their names: those of `split`, by default the training ones. All files, if the names
    state no split or the user named the files."""
    if not Path(root).is_dir():
        if split:
            raise ValueError(f"{data}: files that are named themselves have no split, only folders have")
        return paths
    named: dict[str, list[str]] = {}
    for path in paths:
        words = re.split(r"[^a-z]+", os.path.relpath(path, root).lower())
        named.setdefault(next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), ""), []).append(path)
    wanted = choose_split(data, named, split)
    return named[wanted] if wanted else paths


def _known_split(data: str, split: str) -> str:
    if split and split not in SPLITS:
        raise ValueError(f"{data}: split: got {split!r}, expected one of {', '.join(SPLITS)}")
    return split or "train"


def _fashion_mnist(split: str, channels: int) -> ImageSource:
    if not FASHION_MNIST_FOLDER.is_dir():
        where = f"{FASHION_MNIST_FOLDER} does not exist"
        raise FileNotFoundError(
            f"fashion-mnist: {where}; install Debian's package dataset-fashion-mnist, "
            "or give the path of a folder with the four IDX files"
        )
    return IdxImages(FASHION_MNIST_FOLDER, split, channels, FASHION_MNIST_CLASSES)
