"""The vector quantizer of VQ-VAE: each vector becomes the nearest code of a learned table, the codebook.

Source: van den Oord et al. 2017, "Neural Discrete Representation Learning" (arXiv 1711.00937), equations 1 to 3.
With `metric="cosine"` it is that of ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627) and LlamaGen (Sun et al. 2024, arXiv
2406.06525); their projection to few dimensions is `projected.py` around it.

Start reading here. `CodebookQuantizer` has the four steps of every quantizer with a codebook, in this order:

    1. nearest code       search and lookup     最近码字：查找与取出
    2. straight through   estimate              直通估计：前向用码字，反向传给输入
    3. loss               vq_terms              损失：码本损失与承诺损失
    4. codebook update    learn and update      码本更新：统计、滑动平均、复活死码

`PointwiseQuantizer.forward` (`base.py`) calls them in this order. The neighbours say only what they do differently:
`ema.py` moves the codes by a moving average (step 4), `sim_vq.py` makes them by a linear layer (step 1),
`index_backpropagation.py` sends the gradient to all of them (step 2).

Legend: N vectors, K codes, D components.
图例：N 个向量，K 个码字，D 维。
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast, final, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from smalti.checks import at_least, below_one, one_of
from smalti.distributed import joined_size, sum_over_processes
from smalti.ops import count_codes, nearest_code, recomputing, rotation_trick, straight_through, unit_sphere
from smalti.ops.nearest import Metric
from smalti.quantizers.base import PointwiseQuantizer, QuantizedVectors, mean_square, whole_counts
from smalti.quantizers.strategies import DeadCodeRevival, KMeansInit

GRADIENTS = ("straight_through", "rotation")


@final
class Codebook(nn.Embedding):
    """A table of codes. An averaged model copies it, and it has no weight decay.

    A code is not only moved by gradients: initialisation and the revival of dead codes replace it at once by a vector
    of the batch, and the average of a dead code and its successor lies where there is no data. Decay would pull a code
    that is rarely chosen to 0, where it dies.
    """


class CodebookQuantizer(PointwiseQuantizer):
    """A quantizer with an explicit codebook (K, D)."""

    cluster_size: Float[Tensor, " k"]
    """Moving average of how many vectors of a batch choose each code."""
    batches_seen: Int64[Tensor, ""]
    """Number of training batches so far."""
    initialised: bool = False
    """Whether initialisation is known to be over; then `batches_seen`, which may lie on a GPU, is not asked again."""
    kept: list[tuple[Tensor, Tensor]] | None = None
    """Vectors and their indices that the codebook has yet to learn from, inside `one_codebook_update`."""
    weight_before: Float[Tensor, "k d"] | None = None
    """The table before the last update that wrote into it: what activation checkpointing must see again."""

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
            metric: "euclidean": the code at the smallest distance. "cosine": vectors and codes are projected to the
                unit sphere first (Yu et al. 2022, arXiv 2110.04627), and the quantized latent is a unit vector.
                "dot": the code with the largest dot product.
            gradient: how the latent gets its gradient: "straight_through" or "rotation" (`ops/rotation.py`).
            init: start from the data; None keeps the random start, uniform in [-1/K, 1/K]; cosine: of length 1.
            revival: replace dead codes; None leaves them as they are.
            decay: of the moving averages, per training batch (the paper's γ).
            swap_beta: put beta on the codebook term instead, as checkpoints were trained by taming-transformers and
                what copied it (its issue 57; `legacy=True` there).
        """
        super().__init__()
        at_least(1, num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        at_least(0, beta=beta)
        one_of(get_args(Metric), metric=metric)
        one_of(GRADIENTS, gradient=gradient)
        below_one(decay=decay)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.beta, self.swap_beta, self.decay = beta, swap_beta, decay
        self.metric, self.gradient, self.init, self.revival = cast(Metric, metric), gradient, init, revival
        self.embedding = Codebook(num_embeddings, embedding_dim, dtype=torch.float32)
        nn.init.uniform_(self.embedding.weight, -1 / num_embeddings, 1 / num_embeddings)
        if metric == "cosine":  # on the sphere: the gradient of a code of length 1 / K would be K times as long
            self.embedding.weight.data = F.normalize(self.embedding.weight.data, dim=1)
        self.register_buffer("cluster_size", torch.ones(num_embeddings, dtype=torch.float32))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))
        self.prepare()

    def prepare(self) -> None:
        """What a subclass with the same arguments adds at the end of the constructor."""

    # ---- 1. The nearest code / 最近码字 ---------------------------------------------------------------------------

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """Index of the nearest code of each vector: argmin_k ‖u − e_k‖. 每个向量的最近码字的索引。"""
        with torch.no_grad():
            return nearest_code(u_ND, self.table(), self.metric)

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Codes of indices, by gathering; the gradient is a scatter-add, no one-hot matrix exists. 按索引取出码字。"""
        return self.normalise(F.embedding(indices_N, self.weight()).float())

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Nearest code of each vector, the code itself, and the loss terms. 最近码字、码字本身与损失项。"""
        indices_N = self.search(u_ND)
        codes_ND = self.lookup(indices_N)
        return QuantizedVectors(indices_N, codes_ND, self.loss_terms(u_ND, codes_ND))

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Bring vectors where the metric lives: to the unit sphere for the cosine, nowhere else otherwise."""
        return unit_sphere(z_ND) if self.metric == "cosine" else z_ND

    def normalise(self, codes_KD: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        """`project` for codes, which are as short as they like: the gradient is that of the projection."""
        return F.normalize(codes_KD, dim=1) if self.metric == "cosine" else codes_KD

    def table(self) -> Float[Tensor, "k d"]:
        """All codes (K, D), before any projection."""
        return self.weight().float()

    def weight(self) -> Float[Tensor, "k d"]:
        """The table as it is stored; a repeated pass sees the table of the pass that it repeats."""
        weight, before = self.embedding.weight, self.weight_before
        if before is None or not self.training or self.frozen or not recomputing():
            return weight
        return before + (weight - weight.detach())

    # ---- 2. The straight-through estimator / 直通估计 --------------------------------------------------------------

    def estimate(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Forward the code, backward to the vector as if nothing had been rounded: codes + (u − sg[u]).

        argmin 没有梯度：前向取码字的值，反向把梯度原样传给 u。
        """
        if self.soft:
            return codes_ND
        return rotation_trick(u_ND, codes_ND) if self.gradient == "rotation" else straight_through(u_ND, codes_ND)

    # ---- 3. The loss / 损失 ----------------------------------------------------------------------------------------

    @abstractmethod
    def loss_terms(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """Unweighted loss terms of vectors and their codes, most often `vq_terms`."""

    def weights(self) -> dict[str, float]:
        """Codebook 1, commitment beta; the other way round with `swap_beta`. 码本项 1，承诺项 beta。"""
        codebook, commitment = (self.beta, 1.0) if self.swap_beta else (1.0, self.beta)
        return {"codebook": codebook, "commitment": commitment}

    # ---- 4. The codebook update / 码本更新 -------------------------------------------------------------------------

    @torch.no_grad()
    def learn(self, u_ND: Float[Tensor, "n d"], indices_N: Int64[Tensor, " n"]) -> None:
        """Learn from one batch, joined over all processes; inside `one_codebook_update` keep it for later."""
        if self.frozen:
            return
        if not torch.compiler.is_compiling():  # kept vectors change nothing before the backward pass repeats this one
            rewritten = self.writes_codes and self.kept is None
            self.weight_before = self.embedding.weight.detach().clone() if rewritten else None
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
        """Count who chose which code, move the averages, then revive dead codes, in this order.

        The other way round a moving average would overwrite a revived code in the same step.
        先更新滑动平均，再复活死码；顺序颠倒会立即覆盖被复活的码字。

        A vector that is not finite counts nowhere: in an average it would stay for ever. The loss tells of it.
        不是有限数的向量不计入任何统计，否则会永远留在滑动平均里；损失会反映出来。

        Args:
            u_ND: the vectors of this process.
            indices_N: what each became.
            vectors: their number over all processes.
            passes: how many of `u_ND` each forward pass brought.
        """
        if self.writes_codes:  # codes become such vectors or their means / 码字将取自这些向量或其均值
            u_ND = self.project(u_ND)
        if self.init is None:  # k-means has counted its own vectors
            self.start_averages(self.batches_seen == 0, vectors)
        finite_N = u_ND.isfinite().all(dim=1)
        counts_K = sum_over_processes(count_codes(indices_N, self.num_embeddings, finite_N))
        self.update_averages(u_ND, finite_N, indices_N, counts_K.float())
        self.batches_seen += 1
        revived = None if self.revival is None else self.revival.replacements(self.cluster_size, u_ND, passes)
        if revived is not None:  # with the count of an average code / 被复活的码字取平均计数
            self.replace(*revived, self.cluster_size.mean().expand_as(self.cluster_size))

    def start_averages(self, first: Bool[Tensor, ""], vectors: int) -> None:
        """At the first batch, start at uniform usage, N / K vectors a code: the same meaning at every batch size."""
        self.cluster_size.masked_fill_(first, vectors / self.num_embeddings)

    def update_averages(
        self,
        u_ND: Float[Tensor, "n d"],
        finite_N: Bool[Tensor, " n"],
        indices_N: Int64[Tensor, " n"],
        counts_K: Float[Tensor, " k"],
    ) -> None:
        """cluster_size <- decay * cluster_size + (1 - decay) * counts of this batch."""
        self.cluster_size.lerp_(counts_K, 1 - self.decay)

    def replace(
        self, chosen_K: Bool[Tensor, " k"], codes_KD: Float[Tensor, "k d"], cluster_size_K: Float[Tensor, " k"]
    ) -> None:
        """Replace the chosen codes and their counts; a subclass with more state per code replaces it here, too.

        `.data`: the step's backward pass must not see an in-place change of a tensor that it saved. The few vectors
        that chose a revived code's predecessor still send their gradient here.
        """
        weight = self.embedding.weight.data
        weight.copy_(torch.where(chosen_K.unsqueeze(1), codes_KD.to(weight.dtype), weight))
        self.cluster_size.copy_(torch.where(chosen_K, cluster_size_K, self.cluster_size))

    @property
    def writes_codes(self) -> bool:
        """Whether `update` writes into the table; otherwise only the optimizer moves it."""
        return self.revival is not None

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
        if self.init is None or not self.initialising:
            return
        centres_KD, counts_K = self.init.centres(self.project(u_ND.detach()), self.table(), self.batches_seen)
        started = counts_K.sum() > 0
        self.replace(started.expand_as(counts_K), self.project(centres_KD), counts_K.float())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.initialised = False  # the number of batches is another one now

    # ---- what others ask ------------------------------------------------------------------------------------------

    def get_codebook(self) -> Float[Tensor, "k d"]:
        """The codes as they come out: (num_embeddings, embedding_dim), of unit length under the cosine metric."""
        return self.normalise(self.table())

    def code_counts(self) -> list[Int64[Tensor, " k"]] | None:
        """See `Quantizer.code_counts`: one count, the moving average `cluster_size`."""
        return [whole_counts(self.cluster_size)] if int(self.batches_seen) else None

    def residual_scale(self) -> list[float]:
        """A table finds its own scale, but on the unit sphere every code has length 1: halve it per level."""
        return [0.5 if self.metric == "cosine" else 1.0] * self.embedding_dim


def vq_terms(u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
    """Equation 3: the codebook term moves codes towards vectors, the commitment term vectors towards codes.

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
        """Codebook and commitment."""
        return vq_terms(u_ND, codes_ND)


@final
class ZNormVectorQuantizer(CodebookQuantizer):
    """Codebook searched by cosine whose codes keep their length; loss = ‖sg[z] − e‖² + beta · ‖z − sg[e]‖².

    Source: the option `using_znorm` of VAR's code (Tian et al. 2024, arXiv 2404.02905). Under the cosine metric of
    `VectorQuantizer` codes come out scaled to unit length, here as they are.
    """

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """Index of the code with the largest cosine."""
        with torch.no_grad():
            return nearest_code(u_ND, self.table(), "cosine")

    def loss_terms(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """Codebook and commitment."""
        return vq_terms(u_ND, codes_ND)


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
