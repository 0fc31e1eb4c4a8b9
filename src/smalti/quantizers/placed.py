"""Tables whose codes can be put where the data is: k-means at the start, revival of dead codes later.

Shared by `vector.py` and `ema.py`; the strategies themselves are described in `strategies.py`. A code is always placed
together with its statistics (`_place`), so that nothing learned before pulls it back.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from smalti.ops import kmeans_start, recomputing
from smalti.ops.processes import joined_size, sample_vectors
from smalti.ops.waiting import reads_are_free
from smalti.quantizers.codebook import CodebookQuantizer
from smalti.quantizers.strategies import DeadCodeRevival, KMeansInit


class PlacedCodebookQuantizer(CodebookQuantizer):
    """A codebook that is initialised from the data and whose dead codes are revived."""

    before: Float[Tensor, "k d"] | None = None
    """The table before the last pass that taught it at once: what activation checkpointing must see again."""
    initialised: bool = False
    """Whether initialisation is known to be over; then `batches_seen`, which may lie on a GPU, is not asked again."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        beta: float = 0.25,
        *,
        metric: str = "euclidean",
        gradient: str = "straight_through",
        init: KMeansInit | None = None,
        revival: DeadCodeRevival | None = None,
        decay: float = 0.99,
        swap_beta: bool = False,
    ):
        """
        Args:
            num_embeddings: number of codes K.
            embedding_dim: components of a code D, the channels of the latent.
            beta: weight of the commitment term.
            init: start from the data; None keeps the random start, uniform in [-1/K, 1/K]; cosine: of length 1.
            revival: replace dead codes; None lets them lie.
            metric, gradient, decay, swap_beta: as in `CodebookQuantizer`.
        """
        super().__init__(
            num_embeddings, embedding_dim, beta, metric=metric, gradient=gradient, decay=decay, swap_beta=swap_beta
        )
        self.init, self.revival = init, revival

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`."""
        return super().config() | {
            "init": self.init and asdict(self.init),
            "revival": self.revival and asdict(self.revival),
        }

    @property
    def initialising(self) -> bool:
        """Whether the next training batch still serves to initialise the codebook."""
        if self.init is None or self.frozen or self.kept or self.initialised:
            return False
        if not torch.compiler.is_compiling():
            self.initialised = int(self.batches_seen) >= self.init.batches
        return not self.initialised

    @torch.no_grad()
    def initialise(self, u_ND: Float[Tensor, "n d"]) -> None:
        """Run k-means on this batch while initialisation lasts; afterwards do nothing."""
        if not self.initialising:
            return
        assert self.init is not None
        u_ND = self.project(u_ND.detach())
        centres_KD, counts_K = kmeans_start(
            u_ND, self.table(), self.batches_seen, self.init.batches, self.init.iterations
        )
        started = counts_K.sum() > 0
        self._place(started.expand_as(counts_K), self.project(centres_KD), counts_K.float())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.initialised = False  # the number of batches is another one now

    def weight(self) -> Float[Tensor, "k d"]:
        """See `CodebookQuantizer.weight`; a repeated pass sees the table of the pass that it repeats."""
        weight, taught = self.embedding.weight, self.training and not self.frozen
        if self.before is None or not taught or not recomputing():
            return weight
        return self.before + (weight - weight.detach())

    def learn(self, u_ND: Float[Tensor, "n d"], indices_N: Int64[Tensor, " n"]) -> None:
        """See `CodebookQuantizer.learn`; kept vectors change nothing before the backward pass repeats this one."""
        if not torch.compiler.is_compiling():
            self.before = self.embedding.weight.detach().clone() if self.kept is None else None
        super().learn(u_ND, indices_N)

    def update(
        self, u_ND: Float[Tensor, "n d"], indices_N: Int64[Tensor, " n"], vectors: int, passes: Sequence[int]
    ) -> None:
        """Learn from one batch: update the moving averages, then revive the dead, in this order.

        The other way round the moving average would overwrite a revived code in the same step.
        先更新滑动平均,再复活死码;顺序颠倒会立即覆盖被复活的码字。
        """
        u_ND = self.project(u_ND)
        super().update(u_ND, indices_N, vectors, passes)
        if self.revival is not None:
            self._revive(self.revival.dead(self.cluster_size), u_ND, passes)

    def start_averages(self, first: Bool[Tensor, ""], vectors: int) -> None:
        """See `CodebookQuantizer.start_averages`; initialisation has counted its own vectors."""
        if self.init is None:
            uniform_K = torch.full_like(self.cluster_size, vectors / self.num_embeddings)
            self._place(first.expand_as(uniform_K), self.table(), uniform_K)

    def _revive(self, dead_K: Tensor, u_ND: Tensor, passes: Sequence[int]) -> None:
        """Put random vectors of the batch in place of dead codes, with the count of an average code.

        No vector serves twice: of more dead codes than vectors the rest waits for the next batch.
        """
        if reads_are_free(dead_K) and not dead_K.any():
            return  # nothing is drawn; a graph and a GPU do not look, so they draw in vain
        turn_K = dead_K.cumsum(0) - 1
        count = min(self.num_embeddings, joined_size(u_ND))
        vectors_KD = sample_vectors(u_ND, count, passes)[turn_K.clamp(0, count - 1)]
        dead_K = dead_K & (turn_K < count) & vectors_KD.isfinite().all(dim=1)
        self._place(dead_K, vectors_KD, self.cluster_size.mean().expand_as(self.cluster_size))

    def _place(self, chosen_K: Tensor, codes_KD: Tensor, cluster_size_K: Tensor) -> None:
        """Set the chosen codes by hand; a subclass with more state per code keeps it in agreement here.

        `.data`: the step's backward pass must not see an in-place change of a tensor that it saved. The few vectors
        that chose a revived code's predecessor still send their gradient here.
        """
        weight = self.embedding.weight.data
        weight.copy_(torch.where(chosen_K.unsqueeze(1), codes_KD.to(weight.dtype), weight))
        self.cluster_size.copy_(torch.where(chosen_K, cluster_size_K, self.cluster_size))
