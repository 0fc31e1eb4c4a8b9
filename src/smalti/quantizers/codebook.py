"""The common half of quantizers that hold their codes in a table: search, lookup, losses.

Leaves differ in how the table learns: `vector.py` by gradient, `ema.py` by moving average, `sim_vq.py` through one
linear layer, `index_backpropagation.py` all codes at once.

Legend: N vectors, K codes, D components.
图例:N 个向量,K 个码字,D 维。
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from smalti.ops import count_codes, nearest_code, rotation_trick, straight_through, unit_sphere
from smalti.ops.nearest import Metric
from smalti.ops.processes import joined_size, sum_over_processes
from smalti.quantizers.base import not_negative, positive, whole_counts
from smalti.quantizers.rows import RowQuantizer, Rows
from smalti.quantizers.tables import Codebook

METRICS = ("euclidean", "cosine", "dot")
GRADIENT_ESTIMATORS = {"straight_through": straight_through, "rotation": rotation_trick}


class CodebookQuantizer(RowQuantizer):
    """A quantizer with an explicit codebook (K, D)."""

    cluster_size: Float[Tensor, " k"]
    """Moving average of how many vectors of a batch choose each code."""
    batches_seen: Int64[Tensor, ""]
    """Number of training batches so far."""
    kept: list[tuple[Tensor, Tensor]] | None = None
    """Vectors and their indices that the codebook has yet to learn from, inside `one_codebook_update`."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        beta: float = 0.25,
        *,
        metric: str = "euclidean",
        gradient: str = "straight_through",
        decay: float = 0.99,
        swap_beta: bool = False,
    ):
        """
        Args:
            num_embeddings: number of codes K.
            embedding_dim: components of a code D, the channels of the latent.
            beta: weight of the commitment term.
            metric: "euclidean": the code at the smallest distance. "cosine": vectors and codes are projected to the
                unit sphere first (Yu et al. 2022, arXiv 2110.04627), and the quantized latent is a unit vector.
                "dot": the code with the largest dot product.
            gradient: how the latent gets its gradient: "straight_through" or "rotation" (`ops/rotation.py`).
            decay: of the moving averages, per training batch.
            swap_beta: put beta on the codebook term instead, as checkpoints were trained by taming-transformers and
                what copied it (its issue 57; `legacy=True` there).
        """
        super().__init__()
        positive(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        not_negative(beta=beta)
        if metric not in METRICS:
            raise ValueError(f"metric: got {metric!r}, expected one of {METRICS}")
        if gradient not in list(GRADIENT_ESTIMATORS):
            raise ValueError(f"gradient: got {gradient!r}, expected one of {tuple(GRADIENT_ESTIMATORS)}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay: got {decay}, expected at least 0 and below 1")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.beta, self.metric, self.gradient = beta, cast(Metric, metric), gradient
        self.decay, self.swap_beta = decay, swap_beta
        self.embedding = Codebook(num_embeddings, embedding_dim, dtype=torch.float32)
        nn.init.uniform_(self.embedding.weight, -1 / num_embeddings, 1 / num_embeddings)
        if metric == "cosine":  # on the sphere: the gradient of a code of length 1 / K would be K times as long
            self.embedding.weight.data = F.normalize(self.embedding.weight.data, dim=1)
        self.register_buffer("cluster_size", torch.ones(num_embeddings, dtype=torch.float32))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`."""
        return {
            "type": type(self).__name__,
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "beta": self.beta,
            "metric": self.metric,
            "gradient": self.gradient,
            "decay": self.decay,
            "swap_beta": self.swap_beta,
        }

    def get_codebook(self) -> Float[Tensor, "k d"]:
        """The codes as they come out: (num_embeddings, embedding_dim), of unit length under the cosine metric."""
        return self.normalise(self.table())

    def code_counts(self) -> list[Int64[Tensor, " k"]] | None:
        """See `Quantizer.code_counts`: one count, the moving average `cluster_size`."""
        return [whole_counts(self.cluster_size)] if int(self.batches_seen) else None

    # ---- the parts, used by wrappers too ------------------------------------------------------------------------

    def weight(self) -> Float[Tensor, "k d"]:
        """The table as it is stored."""
        return self.embedding.weight

    def table(self) -> Float[Tensor, "k d"]:
        """All codes (K, D), before any projection."""
        return self.weight().float()

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Bring vectors where the metric lives: to the unit sphere for the cosine, nowhere else otherwise."""
        return unit_sphere(z_ND) if self.metric == "cosine" else z_ND

    def normalise(self, codes_KD: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        """`project` for codes, which are as short as they like: the gradient is that of the projection."""
        return F.normalize(codes_KD, dim=1) if self.metric == "cosine" else codes_KD

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """Index of the nearest code of each vector."""
        with torch.no_grad():
            return nearest_code(u_ND, self.table(), self.metric)

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Codes of indices, by gathering; the gradient is a scatter-add, no one-hot matrix exists."""
        return self.normalise(F.embedding(indices_N, self.weight()).float())

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> Rows:
        """Nearest code of each vector, then gather it / 查找最近码字并取出"""
        indices_N = self.search(u_ND)
        codes_ND = self.lookup(indices_N)
        return Rows(indices_N, codes_ND, self.loss_terms(u_ND, codes_ND))

    def estimate(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Forward the code, backward to the vector / 前向用码字,反向传给输入向量"""
        return codes_ND if self.soft else GRADIENT_ESTIMATORS[self.gradient](u_ND, codes_ND)

    @abstractmethod
    def loss_terms(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """Unweighted loss terms of vectors and their codes."""

    def weights(self) -> dict[str, float]:
        """Codebook 1, commitment beta; the other way round with `swap_beta`."""
        codebook, commitment = (self.beta, 1.0) if self.swap_beta else (1.0, self.beta)
        return {"codebook": codebook, "commitment": commitment}

    @torch.no_grad()
    def learn(self, u_ND: Float[Tensor, "n d"], indices_N: Int64[Tensor, " n"]) -> None:
        """Learn from one batch, joined over all processes; inside `one_codebook_update` keep it for later."""
        if self.frozen:
            return
        if self.kept is not None:
            self.kept.append((u_ND, indices_N))
        else:
            self.learn_together([(u_ND, indices_N)])

    @torch.no_grad()
    def learn_together(self, passes: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Learn once from the vectors (N, D) and indices (N,) of several forward passes."""
        u_ND, indices_N = passes[0] if len(passes) == 1 else map(torch.cat, zip(*passes, strict=True))
        if vectors := joined_size(u_ND):
            self.update(u_ND, indices_N, vectors, [len(part_ND) for part_ND, _ in passes])

    def update(
        self, u_ND: Float[Tensor, "n d"], indices_N: Int64[Tensor, " n"], vectors: int, passes: Sequence[int]
    ) -> None:
        """Move the statistics of every code towards the batch, and count it.

        Args:
            u_ND: the vectors of this process.
            indices_N: what each became.
            vectors: their number over all processes.
            passes: how many of `u_ND` each forward pass brought.

        A vector that is not finite counts nowhere: in an average it would stay for ever. The loss tells of it.
        不是有限数的向量不计入任何统计,否则会永远留在滑动平均里;损失会反映出来。
        """
        self.start_averages(self.batches_seen == 0, vectors)
        finite_N = u_ND.isfinite().all(dim=1)
        counts_K = sum_over_processes(count_codes(indices_N, self.num_embeddings, finite_N))
        self.update_averages(u_ND.masked_fill(~finite_N.unsqueeze(1), 0), indices_N, counts_K.float())
        self.batches_seen += 1

    def start_averages(self, first: Bool[Tensor, ""], vectors: int) -> None:
        """At the first batch, start at uniform usage, N / K vectors a code: the same meaning at every batch size."""
        self.cluster_size.masked_fill_(first, vectors / self.num_embeddings)

    def update_averages(
        self, u_ND: Float[Tensor, "n d"], indices_N: Int64[Tensor, " n"], counts_K: Float[Tensor, " k"]
    ) -> None:
        """cluster_size <- decay * cluster_size + (1 - decay) * counts of this batch."""
        self.cluster_size.lerp_(counts_K, 1 - self.decay)

    def residual_scale(self) -> list[float]:
        """A table finds its own scale, but on the unit sphere every code has length 1: halve it per level."""
        return [0.5 if self.metric == "cosine" else 1.0] * self.embedding_dim


@contextmanager
def one_codebook_update(model: nn.Module) -> Iterator[None]:
    """Let the codebooks in a model learn once, at the end, from all forward passes inside: they are one batch.

    For an optimizer step of several micro-batches. After an exception the codebooks have learned nothing.

    >>> with one_codebook_update(model):
    ...     for piece in pieces:
    ...         (model(piece).loss / len(pieces)).backward()
    >>> optimizer.step()
    """
    codebooks = [module for module in model.modules() if isinstance(module, CodebookQuantizer)]
    for codebook in codebooks:
        codebook.kept = []
    try:
        yield
        passes = [codebook.kept for codebook in codebooks]
    finally:
        for codebook in codebooks:
            codebook.kept = None
    for codebook, batches in zip(codebooks, passes, strict=True):
        if batches:
            codebook.learn_together(batches)
