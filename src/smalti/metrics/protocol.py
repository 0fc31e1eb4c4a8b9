"""The evaluation protocol: how images are prepared before measurement, as needed to reproduce a number.

The preparation itself is done by `smalti.data.TransformConfig`; this file has its name, version and description. A
change that alters any number raises `VERSION`.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

NAME, VERSION = "smalti-reconstruction", 1


@dataclass(frozen=True)
class Protocol:
    """The preparation of images, including the parts that no option changes."""

    size: tuple[int, int] | None
    """Height and width of every image; None: each keeps its own size."""
    channels: int
    """3: RGB, with grey expanded and transparency composited over white. 1: grey."""
    crop: str | None
    """Position of the crop in the resized image; None: no crop."""
    resize: str | None
    """Filter and size of the image before the crop; None: no resizing."""
    rounding: str = "uint8"
    """Number format of original and reconstruction in the comparison (rounded to nearest, ties to even)."""
    name: str = NAME
    """Name of the protocol."""
    version: int = VERSION
    """Version of the protocol."""

    @classmethod
    def of_size(cls, size: tuple[int, int] | None, channels: int) -> "Protocol":
        """The protocol at one size, or at each image's own size (None)."""
        if size is None:
            return cls(size=None, channels=channels, crop=None, resize=None)
        return cls(size=size, channels=channels, crop="center", resize="lanczos, antialiased, to cover the crop")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "size": None if self.size is None else list(self.size)}


class PixelHash:
    """SHA-256 of prepared images: equal if and only if pixels, shapes and order are equal.

    File names and formats do not affect it: a folder of BMP files converted to PNG has the same hash.
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
        """64 hex digits for all images so far."""
        return self._digest.hexdigest()
