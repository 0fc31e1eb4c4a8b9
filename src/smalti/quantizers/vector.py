"""The vector quantizer of VQ-VAE: each vector becomes the nearest code of a learned table, the codebook.

Source: van den Oord et al. 2017, "Neural Discrete Representation Learning" (arXiv 1711.00937), equations 1 to 3.
With `metric="cosine"` it is the quantizer of ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627) and LlamaGen (Sun et al.
2024, arXiv 2406.06525); `projected.py` adds their projection to few dimensions.

Start reading here. `CodebookQuantizer` has the four steps of every quantizer with a codebook, in this order:

    1. nearest code       search and lookup     最近码字：搜索与取出
    2. straight through   estimate              直通估计：前向用码字，反向传给输入
    3. loss               vq_terms              损失：码本损失与承诺损失
    4. codebook update    learn and update      码本更新：统计、滑动平均、复活死码

`PointwiseQuantizer.forward` (`base.py`) calls them in this order. The neighbouring files differ in one step each:
`ema.py` updates the codes by a moving average (step 4), `sim_vq.py` computes them with a linear layer (step 1),
`index_backpropagation.py` sends the gradient to all codes (step 2).
`PointwiseQuantizer.forward` 按此顺序调用这四步；相邻各文件只改动其中一步。

Legend: N vectors, K codes, D dimensions.
图例：N 个向量，K 个码字，D 维。
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from smalti.checks import at_least, below_one
from smalti.distributed import joined_size, sum_over_processes
from smalti.formats.arguments import checked
from smalti.ops import count_codes, nearest_code, recomputing, rotation_trick, straight_through, unit_sphere
from smalti.ops.nearest import Metric
from smalti.quantizers.base import PointwiseQuantizer, QuantizedVectors, mean_square, whole_counts
from smalti.quantizers.strategies import REVIVAL_ENDS, DeadCodeRevival, KMeansInit

Gradient = Literal["straight_through", "rotation"]
MEMORY = 4
"""Number of vectors per code that the moving averages remember at least."""


@final
class Codebook(nn.Embedding):
    """A table of codes. It has no weight decay, and averaged weights (EMA) copy it instead of averaging.

    Initialisation and the revival of dead codes replace a code at once by a vector of the batch. The average of a dead
    code and its replacement lies where there is no data. Weight decay would pull a rarely chosen code to 0, and the
    code would die.

    码字表：不做权重衰减，平均权重直接复制它。
    """


class CodebookQuantizer(PointwiseQuantizer):
    """A quantizer with an explicit codebook (K, D). 带有显式码本 (K, D) 的量化器。"""

    cluster_size: Float[Tensor, " k"]
    """Moving average of the number of vectors per batch that choose each code."""
    batches_seen: Int64[Tensor, ""]
    """Number of training batches so far."""
    reviving: bool = True
    """Whether dead codes are still replaced, false in the last part of a training run."""
    initialised: bool = False
    """Whether initialisation is known to be over; then `batches_seen`, which may be on a GPU, is not read again."""
    kept: list[tuple[Tensor, Tensor]] | None = None
    """Inside `one_codebook_update`: vectors and indices kept for the codebook update at its end."""
    weight_before: Float[Tensor, "k d"] | None = None
    """The table before the last update that wrote into it; passes that activation checkpointing repeats use it."""

    @checked
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        beta: float = 0.25,
        *,
        metric: Metric = "euclidean",
        gradient: Gradient = "straight_through",
        init: KMeansInit | None = None,
        revival: DeadCodeRevival | None = None,
        decay: float = 0.99,
        swap_beta: bool = False,
    ):
        """
        Args:
            num_embeddings: number of codes K.
            embedding_dim: dimension D of a code, equal to the channels of the latent.
            beta: weight of the commitment term.
            metric: "euclidean": the code at the smallest distance. "cosine": vectors and codes are projected to the
                unit sphere first (Yu et al. 2022, arXiv 2110.04627), and the quantized latent is a unit vector.
                "dot": the code with the largest dot product.
            gradient: gradient estimator: "straight_through" or "rotation" (`ops/rotation.py`).
            init: initialisation from data; None: random, uniform in [-1/K, 1/K]; with "cosine" of length 1.
            revival: replacement of dead codes; None: no replacement.
            decay: decay of the moving averages, per training batch (the paper's γ); see `decay_for`.
            swap_beta: weight the codebook term by beta instead of the commitment term, as taming-transformers and code
                derived from it do (its issue 57; `legacy=True` there).
        """
        super().__init__()
        at_least(1, num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        at_least(0, beta=beta)
        below_one(decay=decay)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.beta, self.swap_beta, self.decay = beta, swap_beta, decay
        self.metric, self.gradient, self.init, self.revival = metric, gradient, init, revival
        self.embedding = Codebook(num_embeddings, embedding_dim, dtype=torch.float32)
        nn.init.uniform_(self.embedding.weight, -1 / num_embeddings, 1 / num_embeddings)
        if metric == "cosine":  # to unit length: the gradient of a code of length 1 / K would be K times as long
            self.embedding.weight.data = F.normalize(self.embedding.weight.data, dim=1)
        self.register_buffer("cluster_size", torch.ones(num_embeddings, dtype=torch.float32))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))
        self.prepare()

    def prepare(self) -> None:
        """Hook at the end of the constructor, for a subclass with the same arguments."""

    # ---- 1. The nearest code / 最近码字 ---------------------------------------------------------------------------

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """Index of the nearest code of each vector: argmin_k ‖u − e_k‖. 每个向量的最近码字的索引。"""
        with torch.no_grad():
            return nearest_code(u_ND, self.table(), self.metric)

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Codes of indices, by gather; its gradient is a scatter-add, without a one-hot matrix. 按索引取出码字。"""
        return self.normalise(F.embedding(indices_N, self.weight()).float())

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Index and value of the nearest code of each vector, and loss terms. 最近码字、其索引与损失项。"""
        indices_N = self.search(u_ND)
        codes_ND = self.lookup(indices_N)
        return QuantizedVectors(indices_N, codes_ND, self.loss_terms(u_ND, codes_ND))

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """For the cosine metric: project vectors to the unit sphere; otherwise return them unchanged."""
        return unit_sphere(z_ND) if self.metric == "cosine" else z_ND

    def normalise(self, codes_KD: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        """`project` for codes, which may be of any length; the gradient passes through the projection."""
        return F.normalize(codes_KD, dim=1) if self.metric == "cosine" else codes_KD

    def table(self) -> Float[Tensor, "k d"]:
        """All codes (K, D), before any projection."""
        return self.weight().float()

    def weight(self) -> Float[Tensor, "k d"]:
        """The stored table; in a pass that activation checkpointing repeats, the table of the original pass."""
        weight, before = self.embedding.weight, self.weight_before
        if before is None or not self.training or self.frozen or not recomputing():
            return weight
        return before + (weight - weight.detach())

    # ---- 2. The straight-through estimator / 直通估计 --------------------------------------------------------------

    def estimate(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Forward: the code. Backward: the gradient goes unchanged to the vector: codes + (u − sg[u]).

        argmin 没有梯度：前向取码字的值，反向把梯度原样传给 u。
        """
        if self.soft:
            return codes_ND
        return rotation_trick(u_ND, codes_ND) if self.gradient == "rotation" else straight_through(u_ND, codes_ND)

    # ---- 3. The loss / 损失 ----------------------------------------------------------------------------------------

    @abstractmethod
    def loss_terms(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """Unweighted loss terms of vectors and their codes, usually `vq_terms`."""

    def weights(self) -> dict[str, float]:
        """Codebook 1, commitment beta; exchanged with `swap_beta`. 码本项 1，承诺项 beta；`swap_beta` 时互换。"""
        codebook, commitment = (self.beta, 1.0) if self.swap_beta else (1.0, self.beta)
        return {"codebook": codebook, "commitment": commitment}

    # ---- 4. The codebook update / 码本更新 -------------------------------------------------------------------------

    @torch.no_grad()
    def learn(self, u_ND: Float[Tensor, "n d"], indices_N: Int64[Tensor, " n"]) -> None:
        """Update the codebook from one batch of all processes; inside `one_codebook_update` keep the batch for its end.

        用一个批次（所有进程合并）更新码本。
        """
        if self.frozen:
            return
        if not torch.compiler.is_compiling():  # keep this table for the pass that is repeated in backward
            rewritten = self.writes_codes and self.kept is None
            self.weight_before = self.embedding.weight.detach().clone() if rewritten else None
        if self.kept is not None:
            self.kept.append((u_ND, indices_N))
        else:
            self.learn_together([(u_ND, indices_N)])

    @torch.no_grad()
    def learn_together(self, passes: Sequence[tuple[Tensor, Tensor]]) -> None:
        """One update from the vectors (N, D) and indices (N,) of several forward passes. 多次前向合并为一次更新。"""
        u_ND, indices_N = passes[0] if len(passes) == 1 else map(torch.cat, zip(*passes, strict=True))
        if vectors := joined_size(u_ND):
            self.update(u_ND, indices_N, vectors, [len(part_ND) for part_ND, _ in passes])

    def update(
        self, u_ND: Float[Tensor, "n d"], indices_N: Int64[Tensor, " n"], vectors: int, passes: Sequence[int]
    ) -> None:
        """Count how often each code was chosen, update the averages, then revive dead codes, in this order.

        In the reverse order a moving average would overwrite a revived code in the same step.
        先更新滑动平均，再复活死码；顺序颠倒会立即覆盖被复活的码字。

        Non-finite vectors are not counted, as they would stay in the averages for ever; the loss shows them.
        不是有限数的向量不计入任何统计，否则会永远留在滑动平均里；损失会反映出来。

        Args:
            u_ND: the vectors of this process.
            indices_N: the index of each vector's code.
            vectors: number of vectors over all processes.
            passes: number of vectors of `u_ND` per forward pass.
        """
        if self.writes_codes:  # codes become vectors of the batch or their means / 码字将取自这些向量或其均值
            u_ND = self.project(u_ND)
        if self.init is None:  # k-means counts its own vectors
            self.start_averages(self.batches_seen == 0, vectors)
        finite_N = u_ND.isfinite().all(dim=1)
        counts_K = sum_over_processes(count_codes(indices_N, self.num_embeddings, finite_N))
        self.update_averages(u_ND, finite_N, indices_N, counts_K.float(), self.decay_for(vectors))
        self.batches_seen += 1
        if self.revival is None or not self.reviving:
            return
        revived = self.revival.replacements(self.cluster_size, u_ND, passes)
        if revived is not None:  # with the mean count over all codes / 被复活的码字取平均计数
            self.replace(*revived, self.cluster_size.mean().expand_as(self.cluster_size))

    def decay_for(self, vectors: int) -> float:
        """Decay for a batch of so many vectors: `decay`, or more, so that averages remember `MEMORY` vectors per code.

        The averages remember 1 / (1 − decay) batches. A coarse scale has few vectors per batch: 8 images of one vector
        give each of 512 codes a vector in 64 batches. With a shorter memory every code would be the last vector that
        chose it, and codes would count as dead by chance.

        滑动平均至少记住每码字 `MEMORY` 个向量：粗尺度每批向量很少，记忆过短时码字只是最近一个向量，也会被误判为死码。
        """
        return max(self.decay, 1 - vectors / (MEMORY * self.num_embeddings))

    def set_progress(self, done: float) -> None:
        """End the revival of dead codes in time."""
        self.reviving = done < REVIVAL_ENDS

    def start_averages(self, first: Bool[Tensor, ""], vectors: int) -> None:
        """At the first batch, start at uniform usage, N / K vectors per code, so counts scale with the batch size."""
        self.cluster_size.masked_fill_(first, vectors / self.num_embeddings)

    def update_averages(
        self,
        u_ND: Float[Tensor, "n d"],
        finite_N: Bool[Tensor, " n"],
        indices_N: Int64[Tensor, " n"],
        counts_K: Float[Tensor, " k"],
        decay: float,
    ) -> None:
        """cluster_size <- decay * cluster_size + (1 - decay) * counts of this batch."""
        self.cluster_size.lerp_(counts_K, 1 - decay)

    def replace(
        self, chosen_K: Bool[Tensor, " k"], codes_KD: Float[Tensor, "k d"], cluster_size_K: Float[Tensor, " k"]
    ) -> None:
        """Replace the chosen codes and their counts; a subclass with more state per code replaces it here, too.

        替换选定的码字及其计数。

        `.data`: autograd must not detect an in-place change of a tensor saved for the backward pass. The few vectors
        that chose a code before its revival still send their gradient to it.
        """
        weight = self.embedding.weight.data
        weight.copy_(torch.where(chosen_K.unsqueeze(1), codes_KD.to(weight.dtype), weight))
        self.cluster_size.copy_(torch.where(chosen_K, cluster_size_K, self.cluster_size))

    @property
    def writes_codes(self) -> bool:
        """Whether `update` writes into the table; otherwise only the optimizer changes it."""
        return self.revival is not None

    @property
    def initialising(self) -> bool:
        """Whether the next training batch still initialises the codebook."""
        if self.init is None or self.frozen or self.kept or self.initialised or self.batches_seen.device.type == "meta":
            return False
        if not torch.compiler.is_compiling():
            self.initialised = int(self.batches_seen) >= self.init.batches
        return not self.initialised

    @torch.no_grad()
    def initialise(self, u_ND: Float[Tensor, "n d"]) -> None:
        """Run k-means on this batch while initialisation lasts. 初始化阶段在本批次上运行 k-means。"""
        if self.init is None or not self.initialising:
            return
        centres_KD, counts_K = self.init.centres(self.project(u_ND.detach()), self.table(), self.batches_seen)
        started = counts_K.sum() > 0
        self.replace(started.expand_as(counts_K), self.project(centres_KD), counts_K.float())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.initialised = False  # the number of batches has changed

    # ---- queries ------------------------------------------------------------------------------------------------

    def get_codebook(self) -> Float[Tensor, "k d"]:
        """The codes as in `lookup`: (num_embeddings, embedding_dim), of unit length with the cosine metric."""
        return self.normalise(self.table())

    def code_counts(self) -> list[Int64[Tensor, " k"]] | None:
        """See `Quantizer.code_counts`: one count, the moving average `cluster_size`."""
        return [whole_counts(self.cluster_size)] if int(self.batches_seen) else None

    def residual_scale(self) -> list[float]:
        """A learned table finds its own scale; on the unit sphere every code has length 1, so it halves per level."""
        return [0.5 if self.metric == "cosine" else 1.0] * self.embedding_dim


def vq_terms(u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
    """Equation 3: the codebook term moves codes towards vectors; the commitment term moves vectors towards codes.

    码本损失让码字靠近编码器输出；承诺损失让编码器输出靠近码字。
    """
    return {
        "codebook": mean_square(codes_ND, u_ND.detach()),
        "commitment": mean_square(u_ND, codes_ND.detach()),
    }


@final
class VectorQuantizer(CodebookQuantizer):
    """Codebook learned by gradient: loss = ‖sg[z] − e‖² + beta · ‖z − sg[e]‖².

    >>> vq = VectorQuantizer(num_embeddings=16, embedding_dim=64)
    >>> quantized, loss, indices = vq(torch.randn(1, 64, 8, 8))  # (1, 64, 8, 8), (), (1, 8, 8)
    """

    def loss_terms(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """Codebook and commitment terms. 码本损失与承诺损失。"""
        return vq_terms(u_ND, codes_ND)


@final
class ZNormVectorQuantizer(CodebookQuantizer):
    """Search by cosine, with codes of any length: loss = ‖sg[z] − e‖² + beta · ‖z − sg[e]‖².

    Source: the option `using_znorm` of VAR's code (Tian et al. 2024, arXiv 2404.02905). With `metric="cosine"`
    `VectorQuantizer` returns codes scaled to unit length; this class returns them unscaled.
    """

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """Index of the code with the largest cosine."""
        with torch.no_grad():
            return nearest_code(u_ND, self.table(), "cosine")

    def loss_terms(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """Codebook and commitment terms. 码本损失与承诺损失。"""
        return vq_terms(u_ND, codes_ND)


@contextmanager
def one_codebook_update(model: nn.Module) -> Iterator[None]:
    """Treat all forward passes inside as one batch: the codebooks of a model are updated once, at the end.

    For an optimizer step of several micro-batches. After an exception the codebooks are unchanged.

    多个小批次对码本来说是同一批：其中所有前向结束后，码本只更新一次。

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
