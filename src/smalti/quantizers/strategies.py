"""How a codebook starts and how it stays alive: strategies that a codebook quantizer is given.

Both answer the field's most frequent complaint, collapse: codes that start far from the data are never chosen, so they
never move, so they are never chosen.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class KMeansInit:
    """Start the codebook at the k-means centres of the first training batches."""

    batches: int = 4
    """Number of first training batches on which k-means runs, each from the centres of the one before."""
    iterations: int = 10
    """Lloyd iterations a batch."""

    def __post_init__(self) -> None:
        if self.batches < 1 or self.iterations < 1:
            raise ValueError(f"KMeansInit: got {self}, expected batches and iterations of at least 1")


@dataclass(frozen=True)
class DeadCodeRevival:
    """Replace codes that are hardly ever chosen by vectors of the current batch."""

    threshold: float = 0.1
    """A code is dead when its usage falls below this fraction of uniform usage (all tokens / all codes), so the rule
    means the same at every codebook and batch size."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold: got {self.threshold}, expected a fraction between 0 and 1")

    def dead(self, cluster_size_K: Float[Tensor, " k"]) -> Bool[Tensor, " k"]:
        """Which codes are dead, given the moving average of how often each is chosen."""
        return cluster_size_K < self.threshold * torch.mean(cluster_size_K)
