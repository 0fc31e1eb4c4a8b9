"""Picture files as a source: a folder searched recursively, or one single file.

In the manner of torchvision's `ImageFolder`, the sub-folders of the root are classes; unlike it, they may be absent or
nested, and a file that cannot be read is reported instead of ending the job.
"""

import os
from pathlib import Path

from PIL import Image

from smalti.data.decode import DEFAULT_MAX_PIXELS, FORMATS, IMAGE_SUFFIXES, check_decoding, load_picture
from smalti.data.source import ImageSource, SourceVanishedError, UnreadableImageError

__all__ = ["ImageFiles"]


class ImageFiles(ImageSource):
    """All PNG, JPEG, WebP, BMP and TIFF files under a folder, sorted by relative path; or one file.

    Files are found by their suffix in any case, and names that begin with a dot are left out, folders included. Links
    to folders are followed, except back into a folder that the search came through. The class of an image is the
    position of the root's sub-folder it lies in among all of them, sorted by name; an image beside those has none.

    Args:
        path: a folder, or one image file.
        channels: 3 for RGB, 1 for grey.
        max_pixels: pictures of more pixels are reported as unreadable.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: there is a folder without an image, or a file that is not named as one.
    """

    def __init__(self, path: str | Path, channels: int = 3, max_pixels: int = DEFAULT_MAX_PIXELS):
        super().__init__()
        check_decoding(channels, max_pixels)
        self.root = Path(path)
        self.channels = channels
        self.max_pixels = max_pixels
        if not self.root.exists():
            raise FileNotFoundError(f"{self.root}: no such file or folder")
        if self.root.is_dir():
            found, folders = _search(self.root)
            if not found:
                raise ValueError(f"{self.root}: no image in this folder or below it ({FORMATS})")
            self.class_names = tuple(folders)
        elif _is_image_name(self.root.name):
            found = [(_printable(self.root.name), self.root)]
        else:
            raise ValueError(f"{self.root}: not named as an image ({', '.join(IMAGE_SUFFIXES)})")
        self._keys = [key for key, _ in found]
        self._paths = [str(path) for _, path in found]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def label(self, index: int) -> int | None:
        top, slash, _ = self._keys[index].partition("/")
        return self.class_names.index(top) if slash else None

    def _read(self, index: int, enough: int | None) -> Image.Image:
        try:
            return load_picture(self._paths[index], self.channels, self.max_pixels, enough)
        except UnreadableImageError as error:
            raise UnreadableImageError(self.key(index), error.reason) from error
        except OSError as error:  # removed or locked since the search
            if not self.root.exists():
                raise SourceVanishedError(f"{self.root}: was there, and is gone") from error
            raise UnreadableImageError(self.key(index), f"cannot be opened ({error.strerror})") from error


def _search(root: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """All (key, path) below `root` sorted by key, and the sorted names of its immediate sub-folders."""
    found: list[tuple[str, Path]] = []
    top_folders: list[str] = []
    pending: list[tuple[str, Path, frozenset[str]]] = [("", root, frozenset())]
    while pending:
        prefix, folder, came_through = pending.pop()
        here = os.path.realpath(folder)
        if here in came_through:  # a link that leads back
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                key = prefix + _printable(entry.name)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append((f"{key}/", Path(entry.path), came_through | {here}))
                    if not prefix:
                        top_folders.append(key)
                elif _is_image_name(entry.name) and (entry.is_file() or _is_broken_link(entry)):
                    found.append((key, Path(entry.path)))
    return sorted(found), sorted(top_folders)


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    """A broken link is kept, to be reported as unreadable; a pipe or device of an image's name is not."""
    return entry.is_symlink() and not os.path.lexists(os.path.realpath(entry.path))


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _printable(name: str) -> str:
    """A file name as text that can be printed and stored, even where its bytes are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
