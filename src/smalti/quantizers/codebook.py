"""The common half of quantizers that hold their codes in a table: search, initialisation, revival, losses.

Leaves differ in one thing, how the table learns: `VectorQuantizer` by gradient, `EMAVectorQuantizer` by moving average.

Legend: N vectors (all valid positions of the batch), K codes, D components.
图例:N 个向量(批次中所有有效位置),K 个码字,D 维。
"""

from abc import abstractmethod
from dataclasses import asdict
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from smalti.ops import count_codes, kmeans, nearest_code, straight_through
from smalti.ops.kmeans import sample_vectors
from smalti.ops.nearest import Metric
from smalti.quantizers.base import (
    Indices,
    Quantizer,
    QuantizerOutput,
    check_indices,
    from_rows,
    positive,
    to_rows,
)
from smalti.quantizers.strategies import DeadCodeRevival, KMeansInit


class CodebookQuantizer(Quantizer):
    """A quantizer with an explicit codebook (K, D)."""

    cluster_size: Float[Tensor, " k"]
    """Moving average of how many vectors of a batch choose each code."""
    batches_seen: Int64[Tensor, ""]
    """Number of training batches so far."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        beta: float = 0.25,
        *,
        metric: str = "euclidean",
        init: KMeansInit | None = None,
        revival: DeadCodeRevival | None = None,
        decay: float = 0.99,
    ):
        """
        Args:
            num_embeddings: number of codes K.
            embedding_dim: components of a code D, the channels of the latent.
            beta: weight of the commitment term.
            metric: "euclidean": the code at the smallest distance. "cosine": vectors and codes are projected to the
                unit sphere first (Yu et al. 2022, arXiv 2110.04627), and the quantized latent is a unit vector.
            init: start from the data; None keeps the random start, uniform in [-1/K, 1/K].
            revival: replace dead codes; None lets them lie.
            decay: of the moving averages, per training batch.
        """
        super().__init__()
        positive(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric: got {metric!r}, expected 'euclidean' or 'cosine'")
        if not beta >= 0:
            raise ValueError(f"beta: got {beta}, expected at least 0")
        if not 0 <= decay < 1:
            raise ValueError(f"decay: got {decay}, expected at least 0 and below 1")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.metric = cast(Metric, metric)
        self.beta, self.decay = beta, decay
        self.init, self.revival = init, revival
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_embeddings, 1 / num_embeddings)
        self.register_buffer("cluster_size", torch.ones(num_embeddings))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))

    # ---- the contract -------------------------------------------------------------------------------------------

    def forward(
        self, z: Shaped[Tensor, "b *c_and_spatial"], mask: Shaped[Tensor, "b ..."] | None = None
    ) -> QuantizerOutput:
        """See `Quantizer.forward`. The loss is codebook + beta * commitment (van den Oord et al. 2017, equation 3)."""
        self._check_latent(z, mask)
        with torch.autocast(z.device.type, enabled=False):
            # 1. One vector a row: (B, C, *spatial) -> (N, D) / 每行一个向量
            z_ND = to_rows(z).float()
            valid_N = None if mask is None else mask.reshape(-1)
            if self.training:
                self.initialise(_valid(z_ND, valid_N))
            z_ND = self.project(z_ND)
            # 2. Nearest code of each vector, then gather it / 查找最近码字并取出
            indices_N = self.search(z_ND)
            codes_ND = self.lookup(indices_N)
            # 3. Losses over valid positions, both terms in rows (N, D) / 仅对有效位置计算损失,两项布局一致
            z_valid, codes_valid = _valid(z_ND, valid_N), _valid(codes_ND, valid_N)
            terms = self.loss_terms(z_valid, codes_valid)
            # 4. Straight-through: forward the code, backward to z / 直通估计:前向用码字,反向传给 z
            quantized_ND = straight_through(z_ND, codes_ND)
            if self.training:
                self.learn(z_valid.detach(), _valid(indices_N, valid_N))
        batch_and_grid = (z.shape[0], *z.shape[2:])
        return QuantizerOutput(
            quantized=from_rows(quantized_ND, batch_and_grid).to(z.dtype),
            indices=indices_N.reshape(batch_and_grid),
            terms=terms,
            weights={name: self.beta if name == "commitment" else 1.0 for name in terms},
        )

    @torch.no_grad()
    def encode(self, z: Shaped[Tensor, "b *c_and_spatial"]) -> Indices:
        """Indices (B, *spatial) of a latent (B, C, *spatial)."""
        self._check_latent(z, None)
        return self.search(self.project(to_rows(z).float())).reshape(z.shape[0], *z.shape[2:])

    def decode(self, indices: Indices) -> Float[Tensor, "b c *spatial"]:
        """Codes (B, C, *spatial) in fp32 of indices (B, *spatial)."""
        if not isinstance(indices, Tensor) or indices.dim() == 0:
            raise ValueError(f"indices: got {type(indices).__name__}, expected one tensor of shape (B, *spatial)")
        check_indices(indices, self.num_embeddings)
        return from_rows(self.lookup(indices.reshape(-1)), tuple(indices.shape))

    def get_codebook(self) -> Float[Tensor, "k d"]:
        """The codes as they come out: (num_embeddings, embedding_dim), of unit length under the cosine metric."""
        return self.project(self.embedding.weight)

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`."""
        return {
            "type": type(self).__name__,
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "beta": self.beta,
            "metric": self.metric,
            "init": self.init and asdict(self.init),
            "revival": self.revival and asdict(self.revival),
            "decay": self.decay,
        }

    # ---- the parts, used by wrappers too ------------------------------------------------------------------------

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Bring vectors where the metric lives: to the unit sphere for the cosine, nowhere else otherwise."""
        return F.normalize(z_ND, dim=1) if self.metric == "cosine" else z_ND

    def search(self, z_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """Index of the nearest code of each projected vector."""
        return nearest_code(z_ND, self.embedding.weight, self.metric)

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Codes of indices, by gathering; the gradient is a scatter-add, no one-hot matrix exists."""
        return self.project(self.embedding(indices_N).float())

    @abstractmethod
    def loss_terms(self, z_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """Unweighted loss terms of vectors and their codes."""

    @property
    def initialising(self) -> bool:
        """Whether the next training batch still serves to initialise the codebook."""
        return self.init is not None and not self.frozen and int(self.batches_seen) < self.init.batches

    @torch.no_grad()
    def initialise(self, z_ND: Float[Tensor, "n d"]) -> None:
        """Run k-means on this batch while initialisation lasts; afterwards do nothing."""
        if not self.initialising or z_ND.shape[0] == 0:
            return
        assert self.init is not None
        z_ND = self.project(z_ND.detach())
        first = int(self.batches_seen) == 0
        start_KD = sample_vectors(z_ND, self.num_embeddings) if first else self.embedding.weight
        centres_KD, sizes_K = kmeans(z_ND, start_KD, self.init.iterations)
        self._set_codes(slice(None), self.project(centres_KD), sizes_K.float())

    @torch.no_grad()
    def learn(self, z_ND: Float[Tensor, "n d"], indices_N: Int64[Tensor, " n"]) -> None:
        """Learn from one batch: update the moving averages, then revive the dead, in this order.

        The other way round the moving average would overwrite a revived code in the same step.
        先更新滑动平均,再复活死码;顺序颠倒会立即覆盖被复活的码字。
        """
        if self.frozen or z_ND.shape[0] == 0:
            return
        if self.init is None and int(self.batches_seen) == 0:
            # Start the averages at uniform usage, N / K vectors a code: the same meaning at every batch size.
            uniform_K = torch.full_like(self.cluster_size, z_ND.shape[0] / self.num_embeddings)
            self._set_codes(slice(None), self.embedding.weight, uniform_K)
        counts_K = count_codes(indices_N, self.num_embeddings).float()
        self.update_averages(z_ND, indices_N, counts_K)
        if self.revival is not None:
            self._revive(self.revival.dead(self.cluster_size), z_ND)
        self.batches_seen += 1

    def update_averages(
        self, z_ND: Float[Tensor, "n d"], indices_N: Int64[Tensor, " n"], counts_K: Float[Tensor, " k"]
    ) -> None:
        """cluster_size <- decay * cluster_size + (1 - decay) * counts of this batch."""
        self.cluster_size.lerp_(counts_K, 1 - self.decay)

    def _revive(self, dead_K: Tensor, z_ND: Tensor) -> None:
        """Put random vectors of the batch in place of dead codes, with the count of an average code."""
        rows = dead_K.nonzero().squeeze(1)[: z_ND.shape[0]]
        if rows.numel() == 0:
            return
        uniform = self.cluster_size.mean().expand(rows.numel())
        self._set_codes(rows, sample_vectors(z_ND, rows.numel()), uniform)

    def _set_codes(self, rows: Any, codes: Tensor, cluster_size: Tensor) -> None:
        """Place codes by hand; a subclass with more state per code keeps it in agreement here.

        `.data`: the step's backward pass must not see an in-place change of a tensor that it saved. The few vectors
        that chose a revived code's predecessor still send their gradient here.
        """
        self.embedding.weight.data[rows] = codes.to(self.embedding.weight.dtype)
        self.cluster_size[rows] = cluster_size


def _valid(x_N: Tensor, valid_N: Tensor | None) -> Tensor:
    return x_N if valid_N is None else x_N[valid_N]


def mean_square(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean squared difference; 0, not NaN, when there is nothing to compare (everything masked)."""
    return F.mse_loss(a, b) if a.numel() else (a.sum() + b.sum()) * 0.0
