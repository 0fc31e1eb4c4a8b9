"""Initialisation and revival: two arguments of a codebook quantizer against codebook collapse.

Codes that start far from the data are never chosen, so they never move and stay unused. A strategy decides which codes
get which new values; `CodebookQuantizer.replace` writes them, together with their statistics.
两种对付码本坍缩的策略：用 k-means 初始化，以及复活死码。
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from smalti.checks import at_least, expect
from smalti.distributed import joined_size, sample_vectors
from smalti.formats.arguments import check_arguments
from smalti.ops import kmeans_start
from smalti.ops.waiting import reads_are_free

REVIVAL_ENDS = 0.8
"""Fraction of the training steps after which no code is revived: the decoder has to learn what a new code means."""


@dataclass(frozen=True)
class KMeansInit:
    """Initialise the codebook with the k-means centres of the first training batches."""

    batches: int = 4
    """Number of first training batches for k-means; each batch starts from the centres of the previous one."""
    iterations: int = 10
    """Lloyd iterations per batch."""

    def __post_init__(self) -> None:
        check_arguments(type(self), vars(self))
        at_least(1, batches=self.batches, iterations=self.iterations)

    def centres(
        self, u_ND: Float[Tensor, "n d"], table_KD: Float[Tensor, "k d"], batch: Int64[Tensor, ""]
    ) -> tuple[Float[Tensor, "k d"], Int64[Tensor, " k"]]:
        """Centres after one more batch, and the number of vectors of each; all 0 when initialisation is over.

        Args:
            u_ND: vectors of the batch.
            table_KD: the current codes.
            batch: number of the batch, from 0.
        """
        return kmeans_start(u_ND, table_KD, batch, self.batches, self.iterations)


@dataclass(frozen=True)
class DeadCodeRevival:
    """Replace rarely chosen codes by vectors of the current batch."""

    threshold: float = 0.1
    """A code is dead when its usage is below this fraction of uniform usage (all tokens / all codes). This does not
    depend on codebook or batch size."""

    def __post_init__(self) -> None:
        check_arguments(type(self), vars(self))
        expect(0 < self.threshold < 1, "threshold", self.threshold, "a fraction between 0 and 1")

    def dead(self, cluster_size_K: Float[Tensor, " k"]) -> Bool[Tensor, " k"]:
        """Which codes are dead, by the moving average of their counts."""
        return cluster_size_K < self.threshold * torch.mean(cluster_size_K)

    def replacements(
        self, cluster_size_K: Float[Tensor, " k"], u_ND: Float[Tensor, "n d"], passes: Sequence[int]
    ) -> tuple[Bool[Tensor, " k"], Float[Tensor, "k d"]] | None:
        """Which codes to replace, and by which random vectors of the batch; None if no code is known to be dead.

        Each vector is used at most once: if there are more dead codes than vectors, the rest waits for the next batch.

        Args:
            cluster_size_K: moving average of the count of each code.
            u_ND: vectors of this process.
            passes: number of vectors of `u_ND` per forward pass.
        """
        dead_K = self.dead(cluster_size_K)
        if reads_are_free(dead_K) and not dead_K.any():
            return None  # no sampling needed; a graph and a GPU cannot check this and always sample
        turn_K = dead_K.cumsum(0) - 1
        count = min(len(dead_K), joined_size(u_ND))
        vectors_KD = sample_vectors(u_ND, count, passes)[turn_K.clamp(0, count - 1)]
        return dead_K & (turn_K < count) & vectors_KD.isfinite().all(dim=1), vectors_KD
