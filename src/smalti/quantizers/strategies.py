"""How a codebook starts and how it stays alive: strategies that a codebook quantizer is given.

Both answer the field's most frequent complaint, collapse: codes that start far from the data are never chosen, so they
never move, so they are never chosen. A strategy says which codes get which new places; `CodebookQuantizer.replace`
puts them there, together with their statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from smalti.checks import at_least, expect
from smalti.distributed import joined_size, sample_vectors
from smalti.ops import kmeans_start
from smalti.ops.waiting import reads_are_free


@dataclass(frozen=True)
class KMeansInit:
    """Start the codebook at the k-means centres of the first training batches."""

    batches: int = 4
    """Number of first training batches on which k-means runs, each from the centres of the one before."""
    iterations: int = 10
    """Lloyd iterations per batch."""

    def __post_init__(self) -> None:
        at_least(1, batches=self.batches, iterations=self.iterations)

    def centres(
        self, u_ND: Float[Tensor, "n d"], table_KD: Float[Tensor, "k d"], batch: Int64[Tensor, ""]
    ) -> tuple[Float[Tensor, "k d"], Int64[Tensor, " k"]]:
        """The centres after one more batch and how many vectors each attracts: 0 for all when initialisation is over.

        Args:
            u_ND: vectors of the batch.
            table_KD: the codes so far.
            batch: number of the batch, from 0.
        """
        return kmeans_start(u_ND, table_KD, batch, self.batches, self.iterations)


@dataclass(frozen=True)
class DeadCodeRevival:
    """Replace codes that are hardly ever chosen by vectors of the current batch."""

    threshold: float = 0.1
    """A code is dead when its usage falls below this fraction of uniform usage (all tokens / all codes), so the rule
    means the same at every codebook and batch size."""

    def __post_init__(self) -> None:
        expect(0 < self.threshold < 1, "threshold", self.threshold, "a fraction between 0 and 1")

    def dead(self, cluster_size_K: Float[Tensor, " k"]) -> Bool[Tensor, " k"]:
        """Which codes are dead, given the moving average of how often each is chosen."""
        return cluster_size_K < self.threshold * torch.mean(cluster_size_K)

    def replacements(
        self, cluster_size_K: Float[Tensor, " k"], u_ND: Float[Tensor, "n d"], passes: Sequence[int]
    ) -> tuple[Bool[Tensor, " k"], Float[Tensor, "k d"]] | None:
        """Which codes to replace, and by which random vectors of the batch; None where no code is known to be dead.

        No vector serves twice: of more dead codes than vectors the rest waits for the next batch.

        Args:
            cluster_size_K: moving average of how often each code is chosen.
            u_ND: vectors of this process.
            passes: how many of `u_ND` each forward pass brought.
        """
        dead_K = self.dead(cluster_size_K)
        if reads_are_free(dead_K) and not dead_K.any():
            return None  # nothing is drawn; a graph and a GPU do not look, so they draw in vain
        turn_K = dead_K.cumsum(0) - 1
        count = min(len(dead_K), joined_size(u_ND))
        vectors_KD = sample_vectors(u_ND, count, passes)[turn_K.clamp(0, count - 1)]
        return dead_K & (turn_K < count) & vectors_KD.isfinite().all(dim=1), vectors_KD
