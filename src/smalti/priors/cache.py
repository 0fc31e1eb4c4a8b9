"""Cache of keys and values, so that sampling processes every token once.

One allocation per sampling run: 2 · layers · B · L · width numbers (`KeyValueCache.bytes` computes its size).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class LayerCache:
    """Keys and values of one layer."""

    keys: Float[Tensor, "b h l d"]
    """Memory for all L tokens; the first `length` are filled."""
    values: Float[Tensor, "b h l d"]
    """As `keys`."""
    length: int = 0
    """Number of stored tokens."""

    def append(
        self, k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"]
    ) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]]:
        """Store n new tokens; return views of all stored tokens."""
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KeyValueCache:
    """The caches of all layers, in one tensor."""

    def __init__(
        self,
        layers: int,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        """Allocate.

        Args:
            layers: number of transformer blocks.
            shape: (B, heads, L, dimension of a head), for all tokens of the run.
            dtype: of keys and values.
            device: device of keys and values.
        """
        self._storage = torch.empty(layers, 2, *shape, dtype=dtype, device=device)
        self.layers = [LayerCache(keys, values) for keys, values in self._storage]

    @staticmethod
    def bytes(layers: int, batch: int, tokens: int, width: int, dtype: torch.dtype = torch.float32) -> int:
        """Memory of a cache: 2 · layers · B · L · width · bytes per number. Guidance doubles B."""
        return 2 * layers * batch * tokens * width * dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Size of this cache in bytes."""
        return self._storage.nbytes
