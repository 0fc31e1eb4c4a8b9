"""`EncodedSource`: base of sources whose picture files are inside other files: tar shards, Parquet, hub data sets.

`fetch` returns the bytes of a picture file with label and caption; decoding follows later, possibly in another process.
If images are stored in blocks, only the main process fetches, each block once, and passes the bytes to the worker that
decodes them (`receive`).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from PIL import Image

from smalti.data.decode import DEFAULT_MAX_PIXELS, check_decoding, decode_picture
from smalti.data.source import ImageSource, UnreadableImageError


@dataclass(frozen=True)
class Encoded:
    """A picture file as bytes, with label and caption.

    Attributes:
        data: the file's bytes.
        label: index into `class_names`, or None.
        caption: text, or None.
        problem: why the picture cannot be used; "" if it can.
        note: why the label or caption cannot be used (it is then None); "" if it can.
    """

    data: bytes = b""
    label: int | None = None
    caption: str | None = None
    problem: str = ""
    note: str = ""


class EncodedSource(ImageSource):
    """A source whose subclasses give `__len__`, `key` and `fetch`.

    Args:
        channels: 3 for RGB, 1 for grey.
        max_pixels: pictures of more pixels are reported as unreadable.
    """

    def __init__(self, channels: int = 3, max_pixels: int = DEFAULT_MAX_PIXELS):
        super().__init__()
        check_decoding(channels, max_pixels)
        self.channels = channels
        self.max_pixels = max_pixels
        self._at_hand: tuple[int, Encoded] | None = None

    @abstractmethod
    def fetch(self, index: int) -> Encoded:
        """The bytes of image `index`, with label and caption.

        Raises:
            SourceVanishedError: the file that holds it is gone.
        """

    def receive(self, index: int, encoded: Encoded) -> None:
        """Store the result of `fetch(index)` from another process; the next access to image `index` uses it."""
        self._at_hand = (index, encoded)

    def label(self, index: int) -> int | None:
        return self._fetched(index).label

    def caption(self, index: int) -> str | None:
        return self._fetched(index).caption

    def _read(self, index: int, enough: int | None) -> Image.Image:
        encoded, key = self._fetched(index), self.key(index)
        if encoded.problem:
            raise UnreadableImageError(key, encoded.problem)
        if encoded.note:
            self.notes[key] = encoded.note
        return decode_picture(encoded.data, key, self.channels, self.max_pixels, enough)

    def _fetched(self, index: int) -> Encoded:
        """Fetch an image and keep it, because pixels, label and caption are read one after the other."""
        if self._at_hand is None or self._at_hand[0] != index:
            self._at_hand = (index, self.fetch(index))
        return self._at_hand[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_at_hand": None}
