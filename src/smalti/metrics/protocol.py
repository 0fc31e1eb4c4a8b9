"""How images are prepared before anything is measured: what has to be said beside a number for others to get it again.

The preparation itself is `smalti.data.TransformConfig`; this is its name, its version, and its description in words.
A change that alters any number raises `VERSION`.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

NAME, VERSION = "smalti-reconstruction", 1


@dataclass(frozen=True)
class Protocol:
    """The preparation of images. What no option changes is said all the same."""

    size: tuple[int, int] | None
    """Height and width of every image; None: each keeps its own."""
    channels: int
    """3: RGB, grey is expanded and transparency lies over white. 1: grey."""
    crop: str | None
    """Where the crop lies in the resized image; None: no crop."""
    resize: str | None
    """Filter, and how large the image becomes before the crop; None: no resizing."""
    rounding: str = "uint8"
    """What original and reconstruction are rounded to (to nearest, ties to even) before they are compared."""
    name: str = NAME
    """Name of the protocol."""
    version: int = VERSION
    """Version of the protocol."""

    @classmethod
    def of_size(cls, size: tuple[int, int] | None, channels: int) -> "Protocol":
        """The protocol at one size, or at each image's own."""
        if size is None:
            return cls(size=None, channels=channels, crop=None, resize=None)
        return cls(size=size, channels=channels, crop="center", resize="lanczos, antialiased, to cover the crop")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "size": None if self.size is None else list(self.size)}


class PixelHash:
    """SHA-256 over prepared images in their order: equal exactly where the pixels, shapes and order are.

    File names and file formats are not in it; a folder of PNGs of a folder of BMPs has the same hash.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, image: UInt8[Tensor, "b c h w"]) -> None:
        """Add the images (B, C, H, W) of a batch."""
        header = b"".join(side.to_bytes(4, "little") for side in image.shape[1:])
        for picture in image.cpu():
            self._digest.update(header)
            self._digest.update(picture.contiguous().numpy())

    def compute(self) -> str:
        """64 hex digits of everything so far."""
        return self._digest.hexdigest()
