"""`ImageSource`: the interface of every set of images, independent of its storage.

A source is a finite sequence of pictures. Each has a stable, unique key, optionally a class label and a caption, and
uint8 pixels that are read on demand. The source records which pictures could not be read, so that a job can report them
at its end. `files.py`, `tar.py`, `parquet.py`, `hub.py`, `embedded.py` and `idx.py` are sources; `loader.py` turns a
source into batches.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

NAMED_AT_MOST = 20
"""Number of unreadable files named in the one-line summary before "and N more"."""


class UnreadableImageError(ValueError):
    """A picture exists but cannot be used: damaged, not an image, or over the pixel limit.

    Args:
        key: `ImageSource.key` of the picture.
        reason: short reason.
    """

    def __init__(self, key: str, reason: str):
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


class SourceVanishedError(OSError):
    """All images disappeared during a job: folder removed, disk or network lost."""


class MissingPackageError(ValueError):
    """An optional package is not installed. The message names it."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of images that are stored, and therefore read, together.

    A shuffled epoch then reads block by block (see `order.py`) instead of single images in random order.

    Attributes:
        starts: index of the first image of each block, ascending, the first 0.
        in_sequence: whether blocks can only be read one after the other, as from a download that is not kept.
    """

    starts: tuple[int, ...]
    in_sequence: bool = False


class ImageSource(ABC):
    """A finite, ordered set of images. Subclasses give `__len__`, `key`, `_read`; `label`, `caption` if there are any.

    Attributes:
        blocks: blocks of images that are read together; None if every image can be read at the same cost.
        unreadable: key -> reason for every picture that failed so far, in the order of failure. Batches of
            `training_batches` and `ordered_batches` add to it, also if workers read them.
        notes: key -> problem with the label or caption of a readable picture, filled likewise.
        class_names: names of the classes; empty if there are none.
    """

    blocks: Blocks | None = None

    def __init__(self) -> None:
        self.unreadable: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.class_names: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Number of images, the unreadable ones included."""

    @abstractmethod
    def key(self, index: int) -> str:
        """Unique name of image `index`, equal in all runs and on all machines; in a folder, the relative path."""

    @abstractmethod
    def _read(self, index: int, enough: int | None) -> Image.Image:
        """Image `index` as RGB or L, or UnreadableImageError. Sides may be shortened down to `enough` pixels."""

    def label(self, index: int) -> int | None:
        """Class of image `index`, as an index into `class_names`, or None."""
        return None

    def caption(self, index: int) -> str | None:
        """The text that describes image `index`, or None."""
        return None

    def load(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """The pixels of image `index`: uint8 (H, W, C), C = 1 or 3 for the whole source. Do not write to them.

        Raises:
            UnreadableImageError: the picture cannot be used; it is then also listed in `unreadable`.
            SourceVanishedError: nothing can be read any more.
        """
        return to_array(self.picture(index))

    def picture(self, index: int, enough: int | None = None) -> Image.Image:
        """Image `index` as a Pillow image of mode RGB or L. Do not change it.

        With `enough`, the image may be smaller if that is faster, but no side is shorter than `enough` pixels.

        Raises:
            UnreadableImageError: the picture cannot be used; it is then also listed in `unreadable`.
            SourceVanishedError: nothing can be read any more.
        """
        try:
            return self._read(index, enough)
        except UnreadableImageError as error:
            self.unreadable[error.key] = error.reason
            raise

    def unreadable_summary(self) -> str:
        """One-line summary of skipped images, labels and captions; "" if nothing was skipped."""
        records = {"skipped": self.unreadable, "without label or caption": self.notes}
        return "; ".join(f"{what} {_named(record, len(self))}" for what, record in records.items() if record)


def _named(record: dict[str, str], images: int) -> str:
    named = [f"{key} ({reason})" for key, reason in list(record.items())[:NAMED_AT_MOST]]
    rest = len(record) - len(named)
    more = f", and {rest} more" if rest else ""
    return f"{len(record)} of {images} images: {', '.join(named)}{more}"


def to_array(picture: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """A picture of mode RGB or L as uint8 (H, W, C)."""
    array = np.asarray(picture)
    return array[:, :, None] if array.ndim == 2 else array


class _Kept(NamedTuple):
    """A decoded image with label and caption."""

    picture: Image.Image
    label: int | None
    caption: str | None


class CachedSource(ImageSource):
    """Keeps the first decoded images of another source in memory, up to `max_bytes` in this process.

    Nothing is evicted: every image is used once per epoch, so all kept images are equally useful, and evicting would
    only cause more decoding. All reads should use the same `enough`.
    """

    def __init__(self, source: ImageSource, max_bytes: int):
        super().__init__()
        self.source = source
        self.max_bytes = max_bytes
        self.unreadable, self.notes = source.unreadable, source.notes  # shared by both sources
        self.class_names = source.class_names
        self.blocks = source.blocks
        self._kept: dict[int, _Kept] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def label(self, index: int) -> int | None:
        kept = self._kept.get(index)
        return self.source.label(index) if kept is None else kept.label

    def caption(self, index: int) -> str | None:
        kept = self._kept.get(index)
        return self.source.caption(index) if kept is None else kept.caption

    def _read(self, index: int, enough: int | None) -> Image.Image:
        kept = self._kept.get(index)
        if kept is not None:
            return kept.picture
        picture = self.source.picture(index, enough)
        size = picture.width * picture.height * (4 if picture.mode == "RGB" else 1)  # Pillow pads RGB to four bytes
        if self._bytes + size <= self.max_bytes:
            self._kept[index] = _Kept(picture, self.source.label(index), self.source.caption(index))
            self._bytes += size
        return picture

    def __getstate__(self) -> dict[str, Any]:
        """A worker process starts with an empty cache instead of receiving a copy of this one."""
        return self.__dict__ | {"_kept": {}, "_bytes": 0}
