"""What the token file asks of a codec: the coding of tokens by a model that this room does not know."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

__all__ = ["Grids", "TokenCodec"]

Grids = tuple[tuple[int, ...], ...]
"""Shape of each scale of an image, coarse to fine."""


class TokenCodec(ABC):
    """Codes the tokens of one tokenizer."""

    fingerprint: str
    """64 hex digits that change when anything in it changes, `tokenizer` and `grids` included."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    grids: Grids
    """Shapes that most images have, which the file names by one byte; any will do."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """K."""

    @abstractmethod
    def encode(self, images: Sequence[tuple[Grids, Int64[np.ndarray, " _"]]]) -> bytes:
        """Code images, each its grids and its indices in [0, K), all scales in a row.

        Raises:
            ValueError: grids that the codec has no model for.
        """

    @abstractmethod
    def decode(self, data: bytes, grids: Sequence[Grids]) -> list[Int64[np.ndarray, " _"]]:
        """Inverse of `encode`.

        Raises:
            ValueError: bytes that no images with these grids are coded to.
        """
