"""Interface between the token file and a codec. The codec's model is defined elsewhere (`codec/`)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

Grids = tuple[tuple[int, ...], ...]
"""Shape of each scale of an image, coarse to fine."""


class TokenCodec(ABC):
    """Codes the tokens of one tokenizer."""

    fingerprint: str
    """64 hex digits. They change with any part of the codec, `tokenizer` and `grids` included."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    grids: Grids
    """Default grids. A file stores them in one byte; images with other grids are possible."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """K."""

    @abstractmethod
    def encode(self, images: Sequence[tuple[Grids, Int64[np.ndarray, " _"]]]) -> bytes:
        """Encode images. Each is a pair of grids and indices in [0, K), all scales in a row.

        Raises:
            ValueError: the codec has no model for these grids.
        """

    @abstractmethod
    def decode(self, data: bytes, grids: Sequence[Grids]) -> list[Int64[np.ndarray, " _"]]:
        """Inverse of `encode`.

        Raises:
            ValueError: the bytes are not a valid encoding of images with these grids.
        """
