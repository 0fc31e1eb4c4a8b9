"""Picture files as a source: a folder searched recursively, or one single file.

As in torchvision's `ImageFolder`, the sub-folders of the root are classes. Differences: they may be absent or nested; a
sub-folder without an image is not a class; those of ImageNet's layout (train/, val/, test/) are splits; an unreadable
file is reported and does not end the job.
"""

import os
from pathlib import Path

from PIL import Image

from smalti.data.decode import DEFAULT_MAX_PIXELS, FORMATS, IMAGE_SUFFIXES, check_decoding, load_picture
from smalti.data.source import ImageSource, SourceVanishedError, UnreadableImageError
from smalti.data.splits import SPLIT_WORDS, choose_split


class ImageFiles(ImageSource):
    """All picture files (`FORMATS`) under a folder, sorted by relative path; or one file.

    Files are found by their suffix, upper or lower case. Files and folders whose names begin with a dot are skipped.
    Links to folders are followed, except to a parent folder. The class of an image is the index of its sub-folder of
    the root, among the sub-folders with an image, sorted by name. An image directly in the root has no class. If all
    sub-folders with an image are named like splits (`splits.py`), the requested one is the root, and the classes are
    those of all splits together.

    Args:
        path: a folder, or one image file.
        channels: 3 for RGB, 1 for grey.
        max_pixels: pictures of more pixels are reported as unreadable.
        split: "train", "test" or "validation", for a folder with splits; "" means "train".

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: a folder without an image, a file without an image's suffix, or no such split.
    """

    def __init__(self, path: str | Path, channels: int = 3, max_pixels: int = DEFAULT_MAX_PIXELS, split: str = ""):
        super().__init__()
        check_decoding(channels, max_pixels)
        self.root = Path(path)
        self.channels = channels
        self.max_pixels = max_pixels
        if not self.root.exists():
            raise FileNotFoundError(f"{self.root}: no such file or folder")
        if self.root.is_dir():
            found = _search(self.root)
            if not found:
                raise ValueError(f"{self.root}: no image in this folder or its sub-folders ({FORMATS})")
            found, self.class_names = _split_and_classes(str(path), found, split)
        elif _is_image_name(self.root.name):
            found = [(_printable(self.root.name), self.root)]
        else:
            raise ValueError(
                f"{self.root}: not an image file, expected one of the suffixes {', '.join(IMAGE_SUFFIXES)}"
            )
        self._labels = {name: label for label, name in enumerate(self.class_names)}
        self._keys = [key for key, _ in found]
        self._paths = [str(path) for _, path in found]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def label(self, index: int) -> int | None:
        top, slash, _ = self._keys[index].partition("/")
        return self._labels[top] if slash else None

    def _read(self, index: int, enough: int | None) -> Image.Image:
        try:
            return load_picture(self._paths[index], self.channels, self.max_pixels, enough)
        except UnreadableImageError as error:
            raise UnreadableImageError(self.key(index), error.reason) from error
        except OSError as error:  # removed or locked since the search
            if not self.root.exists():
                raise SourceVanishedError(f"{self.root}: disappeared while in use") from error
            raise UnreadableImageError(self.key(index), f"cannot be opened ({error.strerror})") from error


def _split_and_classes(
    data: str, found: list[tuple[str, Path]], split: str
) -> tuple[list[tuple[str, Path]], tuple[str, ...]]:
    """The (key, path) of a split, with keys relative to its folder, and the names of all classes."""
    of_splits: dict[str, list[tuple[str, Path]]] = {}
    for key, path in found:
        top, slash, below = key.partition("/")
        word = SPLIT_WORDS.get(top.lower(), "") if slash else ""
        of_splits.setdefault(word, []).append((below if word else key, path))
    wanted = choose_split(data, of_splits, split)
    parts = [part for word, part in of_splits.items() if word] if wanted else [found]
    classes = {key.partition("/")[0] for part in parts for key, _ in part if "/" in key}
    return sorted(of_splits[wanted]) if wanted else found, tuple(sorted(classes))


def _search(root: Path) -> list[tuple[str, Path]]:
    """All (key, path) below `root`, sorted by key."""
    found: list[tuple[str, Path]] = []
    pending: list[tuple[str, Path, frozenset[str]]] = [("", root, frozenset())]
    while pending:
        prefix, folder, came_through = pending.pop()
        here = os.path.realpath(folder)
        if here in came_through:  # a link to a parent folder
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                key = prefix + _printable(entry.name)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append((f"{key}/", Path(entry.path), came_through | {here}))
                elif _is_image_name(entry.name) and (entry.is_file() or _is_broken_link(entry)):
                    found.append((key, Path(entry.path)))
    return sorted(found)


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    """Broken links are kept and reported as unreadable; pipes and devices named like images are skipped."""
    return entry.is_symlink() and not os.path.lexists(os.path.realpath(entry.path))


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _printable(name: str) -> str:
    """A file name as text that can be printed and stored, even where its bytes are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
