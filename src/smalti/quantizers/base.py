"""The interface and the result type of all quantizers, and the forward pass of those that quantize each vector alone.

A quantizer replaces each vector of a latent by one of finitely many codes. Its result unpacks as

    quantized, loss, indices = quantizer(z)

and carries its loss terms by name, unweighted, so that a training script can weigh and log each.

All but `multi_scale.py` treat every position of the latent alike: a `PointwiseQuantizer` defines how vectors (N, D)
become codes, and this file gives it `forward`, `encode` and `decode` for latents (B, C, *spatial). A wrapper
(`projected.py`, `composite.py`, `multi_scale.py`) calls the same methods of the quantizer inside it, so any of
them can wrap any other. The path of a vector and of the gradient:

    z --project--> u --search--> index --lookup--> code --estimate--> quantized
                   (no gradient)      (to the codebook)  (to u: straight through, rotation, …)

There are two kinds of quantizers. They differ in the path of the gradient of `quantized`. In a hard quantizer
(`soft = False`) `lookup` leads to the codebook, and `estimate` replaces this path by one to u. In a soft quantizer
(index back-propagation, Gumbel, a projection around any quantizer) the codes carry their own gradient to u, and
`estimate` returns them unchanged.
量化器分两类，区别在 `quantized` 的梯度去向：硬量化器由 `estimate` 把梯度改传给 u；软量化器的码字自带到 u 的梯度。

Legend: B images, C = D dimensions, N vectors (valid positions of the batch), K codes.
图例：B 张图像，C = D 维，N 个向量（批次中的有效位置），K 个码字。
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from smalti.formats.plain import to_plain
from smalti.ops import recomputing, straight_through, without_autocast
from smalti.quantizers.latents import (
    check_finite,
    check_indices,
    check_latent,
    from_vectors,
    marked,
    select,
    to_vectors,
)

Indices = Shaped[Tensor, "b *grid"] | Sequence[Shaped[Tensor, "b ..."]]
"""Token indices, int64: (B, *grid), or one such tensor per scale, coarse to fine.

The type is loose on purpose: `check_indices` refuses invalid indices with a clear message.
"""

LARGEST_LISTED_CODEBOOK = 2**20
"""Implicit codebooks with more codes are never listed."""


@dataclass(frozen=True)
class QuantizerOutput:
    """Result of a quantizer; unpacks as `quantized, loss, indices`."""

    quantized: Float[Tensor, "b c *spatial"]
    """The latent with every vector replaced by its code; the gradient passes straight through to the input."""
    indices: Indices
    """Token indices: int64 (B, *spatial); (B, *spatial, Q) where Q codes make one vector (residual levels, groups); for
    a multi-scale quantizer a tuple of one (B, h_k, w_k) per scale, coarse to fine."""
    terms: dict[str, Float[Tensor, ""]]
    """Loss terms by name, unweighted; smaller is better. Distances are means over vectors and dimensions."""
    weights: dict[str, float]
    """Weight of each term, as in the quantizer's paper."""

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Weighted sum of the terms."""
        total = self.quantized.new_zeros((), dtype=torch.float32)
        for name, term in self.terms.items():
            total = total + self.weights[name] * term
        return total

    def __iter__(self) -> Iterator[Any]:
        return iter((self.quantized, self.loss, self.indices))


class Quantizer(nn.Module, ABC):
    """A layer that maps a latent (B, C, *spatial) to codes and their indices.

    In train mode a forward pass may also update the codebook (initialisation, moving averages, revival of dead codes);
    `freeze()` stops all updates, those by gradient included. A pass that activation checkpointing repeats updates
    nothing. `encode` and `decode` never update anything.

    把潜变量 (B, C, *spatial) 换成码字及其索引的层。训练模式下前向传播还可能更新码本；`freeze()` 可全部停止。
    """

    num_embeddings: int
    """Number of codes, per level or group where several make one vector; indices lie in [0, num_embeddings)."""
    embedding_dim: int
    """Dimension of a code: the channels C of the latent."""
    code_shape: tuple[int, ...] = ()
    """Shape of the index of one vector: () for one code, (Q,) for Q levels or groups."""
    frozen: bool = False
    """Whether the codebook is held fixed."""
    held: Sequence[nn.Parameter] = ()
    """Parameters whose gradient `freeze()` switched off."""
    older_defaults: ClassVar[Mapping[str, Any]] = {}
    """Arguments that older models were saved without, with the value to use for these models."""

    @abstractmethod
    def forward(
        self, z: Shaped[Tensor, "b *c_and_spatial"], mask: Shaped[Tensor, "b ..."] | None = None
    ) -> QuantizerOutput:
        """Quantize.

        Args:
            z: latent (B, C, *spatial), any float dtype; the computation is in fp32, the result in the dtype of z.
            mask: bool (B, *spatial), True where a position is valid. Values at invalid positions, NaN included, are
                ignored: they are quantized as zeros, without gradient, loss or codebook update.
        """

    @abstractmethod
    def encode(self, z: Shaped[Tensor, "b *c_and_spatial"]) -> Indices:
        """Indices of a latent, without gradient and without codebook updates.

        Raises:
            ValueError: the latent has NaN or infinite values; not checked inside a compiled or exported graph. On a
                GPU the tokens of such an image are -1 instead, to avoid waiting; `decode` refuses them.
        """

    @abstractmethod
    def decode(self, indices: Indices) -> Float[Tensor, "b c *spatial"]:
        """Quantized latent of indices, in fp32; equals `quantized` of `forward` in eval mode."""

    def decode_progressive(self, indices: Indices) -> list[Float[Tensor, "b c *spatial"]]:
        """Quantized latents after each scale, coarse to fine; the last is `decode(indices)`."""
        return [self.decode(indices)]

    def var_input(self, indices: Indices) -> Float[Tensor, "b l c"]:
        """Training input of an autoregressive generator: here the code vectors in raster order (B, L, C)."""
        z_q = self.decode(indices)
        return z_q.reshape(*z_q.shape[:2], -1).transpose(1, 2)

    @abstractmethod
    def get_codebook(self) -> Float[Tensor, "*parts k d"]:
        """The codes (num_embeddings, embedding_dim), or one such table per level or group.

        Raises:
            ValueError: the codebook is implicit and too large to be listed.
        """

    def config(self) -> dict[str, Any]:
        """Constructor arguments, and the class name under "type", in plain JSON types.

        The names come from the signature of the constructor; each argument is an attribute of the same name. An
        argument with its value from `older_defaults` is left out, so that fingerprints of older models do not change.
        """
        older = self.older_defaults
        arguments = {name: to_plain(getattr(self, name)) for name in inspect.signature(type(self)).parameters}
        written = {name: value for name, value in arguments.items() if name not in older or value != older[name]}
        return {"type": type(self).__name__} | written

    def code_counts(self) -> list[Int64[Tensor, " k"]] | None:
        """How often training chose each code, in units of 1/1024 vector per batch; None: no count was kept.

        One (num_embeddings,) per scale, and within a scale one per code of a position (level, group), in this order.
        Counts are integers, so they are equal on every machine: an entropy coder starts from them.
        """
        return None

    @property
    def learning(self) -> bool:
        """Whether a forward pass updates the codebook: in train mode, not frozen, not a repeated pass."""
        return self.training and not self.frozen and not recomputing()

    def set_progress(self, done: float) -> None:
        """Hook that a training loop calls before each step, with the completed fraction of the steps: annealing."""

    def freeze(self) -> None:
        """Hold the codebook fixed: no gradient, no moving average, no initialisation, no revival.

        This includes every part that turns indices into vectors: projections, φ, inner quantizers.
        """
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.frozen = True
                module.held = [*module.held, *(p for p in module.parameters() if p.requires_grad)]
        self.requires_grad_(False)
        for parameter in self.parameters():
            parameter.grad = None  # else the next optimizer step would still update it

    def unfreeze(self) -> None:
        """Undo `freeze()`: the codebook is updated again, and parameters that had a gradient have one again."""
        for parameter in self.held:
            parameter.requires_grad_(True)
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.frozen, module.held = False, []

    def _apply(self, fn: Any, recurse: bool = True) -> "Quantizer":
        """Stay in fp32 when the model is cast: `model.to(torch.bfloat16)` must not round codes or counts."""

        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)


@dataclass(frozen=True)
class QuantizedVectors:
    """Result of quantizing vectors one by one."""

    indices: Int64[Tensor, "n *code"]
    """Index of each vector's code: (N,), or (N, Q) where Q codes make one vector."""
    codes: Float[Tensor, "n d"]
    """`lookup(indices)`, with its gradient."""
    distances: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Unweighted loss terms that are mean squared distances between vectors and codes."""
    entropies: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Unweighted loss terms that are entropies or divergences, in nats."""

    @property
    def terms(self) -> dict[str, Float[Tensor, ""]]:
        """All loss terms."""
        return self.distances | self.entropies


class PointwiseQuantizer(Quantizer):
    """A quantizer that treats the vectors of all positions alike. 对所有位置的向量一视同仁的量化器。"""

    soft: bool = False
    """Whether codes carry a gradient to the vector that chose them."""
    decay: float = 0.99
    """Decay of the moving averages, per training batch."""

    # ---- latents ------------------------------------------------------------------------------------------------

    def forward(
        self, z: Shaped[Tensor, "b *c_and_spatial"], mask: Shaped[Tensor, "b ..."] | None = None
    ) -> QuantizerOutput:
        """See `Quantizer.forward`; indices are (B, *spatial, *code_shape)."""
        check_latent(z, mask, self.embedding_dim)
        with without_autocast(z):
            # Padding may hold any value, NaN included: set it to zero / 填充位置可能是任意值（含 NaN），先置零
            z_valid = z if mask is None else z.masked_fill(~mask.unsqueeze(1), 0)
            # 1. Vectors, projected to the space of the codes: (B, C, *spatial) -> (N, D) / 取出每个向量，投影到码字空间
            u_ND = self.project(to_vectors(z_valid).float())
            valid_N = None if mask is None else mask.reshape(-1)
            if self.learning and self.initialising:
                self.initialise(select(u_ND, valid_N).detach())
            # 2. Find codes and compute losses, valid positions only / 搜索码字并计算损失，仅限有效位置
            found = self.quantize_valid(u_ND, valid_N)
            # 3. Forward: the code; backward: the gradient goes to z / 前向用码字，反向把梯度传给 z
            quantized_ND = self.estimate(u_ND, found.codes)
            # 4. Update the codebook / 更新码本
            if self.learning:
                self.learn(select(u_ND, valid_N).detach(), select(found.indices, valid_N))
        grid = (z.shape[0], *z.shape[2:])
        return QuantizerOutput(
            quantized=from_vectors(quantized_ND, grid).to(z.dtype),
            indices=found.indices.reshape(*grid, *self.code_shape),
            terms=found.terms,
            weights={name: weight for name, weight in self.weights().items() if name in found.terms},
        )

    @torch.no_grad()
    def encode(self, z: Shaped[Tensor, "b *c_and_spatial"]) -> Indices:
        """Indices (B, *spatial, *code_shape) of a latent (B, C, *spatial)."""
        check_latent(z, None, self.embedding_dim)
        check_finite(z)
        with without_autocast(z):
            indices = self.search(self.project(to_vectors(z).float()))
        return marked(indices.reshape(z.shape[0], *z.shape[2:], *self.code_shape), z)

    def decode(self, indices: Indices) -> Float[Tensor, "b c *spatial"]:
        """Codes (B, C, *spatial) in fp32 of indices (B, *spatial, *code_shape)."""
        if not isinstance(indices, Tensor):
            raise ValueError(f"indices: got {type(indices).__name__}, expected one tensor of shape (B, *spatial)")
        axes = indices.dim() - len(self.code_shape)
        if axes < 1 or not self.accepts(tuple(indices.shape[axes:])):
            expected = ", ".join(["B", "*spatial", *map(str, self.code_shape)])
            raise ValueError(f"indices: got shape {tuple(indices.shape)}, expected ({expected})")
        check_indices(indices, self.num_embeddings)
        with without_autocast(indices):
            codes_ND = self.lookup(indices.reshape(-1, *indices.shape[axes:]))
        return from_vectors(codes_ND, tuple(indices.shape[:axes]))

    def get_codebook(self) -> Float[Tensor, "*parts k d"]:
        """See `Quantizer.get_codebook`."""
        if self.num_embeddings > LARGEST_LISTED_CODEBOOK:
            raise ValueError(
                f"get_codebook: got {self.num_embeddings} codes, expected at most {LARGEST_LISTED_CODEBOOK}; "
                "decode the indices that you need instead"
            )
        device = next(chain(self.parameters(), self.buffers())).device
        return self.lookup(torch.arange(self.num_embeddings, device=device))

    # ---- vectors ------------------------------------------------------------------------------------------------

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Map latents to the space of the codes (a sphere, a box). A wrapper does this once, before any residual.

        把潜变量映射到码字空间。
        """
        return z_ND

    @abstractmethod
    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, "n *code"]:
        """Index of the best code for each vector, deterministic. A vector need not be a result of `project`.

        每个向量的最佳码字的索引，结果是确定的。
        """

    @abstractmethod
    def lookup(self, indices: Int64[Tensor, "n *code"]) -> Float[Tensor, "n d"]:
        """Codes of indices, in fp32, with a gradient to the parameters that make them. 按索引取出码字。"""

    @abstractmethod
    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Choose codes and compute the loss terms. In train mode the choice may be random (Gumbel).

        选择码字并计算损失项。
        """

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """Weight of each loss term. 各损失项的权重。"""

    def estimate(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The values of `codes_ND`, with the gradient of `quantized`. 取码字的值，并规定梯度去向。"""
        return codes_ND if self.soft else straight_through(u_ND, codes_ND)

    @property
    def initialising(self) -> bool:
        """Whether the next training batch still initialises the codebook."""
        return False

    def initialise(self, u_ND: Float[Tensor, "n d"]) -> None:
        """Start the codebook from a training batch of projected vectors."""

    def learn(self, u_ND: Float[Tensor, "n d"], indices: Int64[Tensor, "n *code"]) -> None:
        """Codebook update without gradient from one training batch: moving averages, revival. 不经梯度的码本更新。"""

    def residual_scale(self) -> list[float]:
        """Range of the next residual level's codes relative to these, per dimension.

        A learned table finds its own scale (1); a grid of fixed codes must shrink to refine the residual.
        """
        return [1.0] * self.embedding_dim

    def make_symmetric(self) -> None:
        """Place fixed codes symmetrically around 0, as residuals lie around 0; learned tables need no change."""

    def accepts(self, code_shape: tuple[int, ...]) -> bool:
        """Whether `lookup` takes indices (N, *code_shape)."""
        return code_shape == self.code_shape

    def quantize_valid(self, u_ND: Float[Tensor, "n d"], valid_N: Bool[Tensor, " n"] | None) -> QuantizedVectors:
        """`quantize` the valid vectors; invalid ones get index and code without gradient, loss or codebook update."""
        if valid_N is None:
            return self.quantize(u_ND)
        found = self.quantize(u_ND[valid_N])
        others = self.search(u_ND[~valid_N].detach())
        indices = others.new_empty((u_ND.shape[0], *self.code_shape))
        indices[valid_N], indices[~valid_N] = found.indices, others
        codes_ND = torch.zeros_like(u_ND).index_put((valid_N,), found.codes)
        codes_ND = codes_ND.index_put((~valid_N,), self.lookup(others).detach())
        return QuantizedVectors(indices, codes_ND, found.distances, found.entropies)


# ---- loss terms and counts ------------------------------------------------------------------------------------------


def mean_square(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean squared difference; 0, not NaN, when there is nothing to compare (everything masked)."""
    return F.mse_loss(a, b) if a.numel() else (a.sum() + b.sum()) * 0.0


def average_terms(parts: Iterable[dict[str, Float[Tensor, ""]]]) -> dict[str, Float[Tensor, ""]]:
    """Mean of each term over the parts (levels, groups, scales) that have it."""
    collected: dict[str, list[Tensor]] = {}
    for terms in parts:
        for name, term in terms.items():
            collected.setdefault(name, []).append(term)
    return {name: torch.stack(values).mean() for name, values in collected.items()}


def whole_counts(average_K: Float[Tensor, " k"]) -> Int64[Tensor, " k"]:
    """A moving average of counts in the units of `Quantizer.code_counts`, on the CPU."""
    return (average_K.cpu().double() * 1024).round().long()
