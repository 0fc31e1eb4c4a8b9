"""What every quantizer is, what it returns, and the forward pass of those that quantize vector by vector.

A quantizer replaces each vector of a latent by one of finitely many codes. Its result unpacks as

    quantized, loss, indices = quantizer(z)

and carries its loss terms by name, unweighted, so that a training script can weigh and log each.

All but `multi_scale.py` treat every position of the latent alike: a `PointwiseQuantizer` says how vectors (N, D)
become codes, and gets `forward`, `encode` and `decode` for latents (B, C, *spatial) from here. A wrapper
(`projected.py`, `composite.py`, `multi_scale.py`) calls the same methods of the quantizer inside it, so that any of
them can wrap any other. The path of a vector, and who may have a gradient:

    z --project--> u --search--> index --lookup--> code --estimate--> quantized
                   (no gradient)      (to the codebook)  (to u: straight through, rotation, …)

Two kinds of quantizers differ in where the gradient of `quantized` goes. Of a hard one (`soft = False`) `lookup` ends
in the codebook and `estimate` replaces that path by one to u. Of a soft one (index back-propagation, Gumbel, a
projection around any) the codes carry their own gradient to u and `estimate` leaves them alone.

Legend: B images, C = D components, N vectors (valid positions of the batch), K codes.
图例：B 张图像，C = D 维，N 个向量（批次中的有效位置），K 个码字。
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from smalti.ops import recomputing, straight_through
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

The type is loose on purpose: what cannot be looked up is refused by `check_indices` with a sentence.
"""

LARGEST_LISTED_CODEBOOK = 2**20
"""Implicit codebooks with more codes are never written out."""


@dataclass(frozen=True)
class QuantizerOutput:
    """Result of a quantizer; unpacks as `quantized, loss, indices`."""

    quantized: Float[Tensor, "b c *spatial"]
    """The latent with every vector replaced by its code; the gradient passes straight through to the input."""
    indices: Indices
    """Which codes: int64 (B, *spatial); (B, *spatial, Q) where Q codes make one vector (residual levels, groups); a
    tuple of one (B, h_k, w_k) per scale, coarse to fine, of a multi-scale quantizer."""
    terms: dict[str, Float[Tensor, ""]]
    """Loss terms by name, unweighted, each the smaller the better (distances: means over vectors and components)."""
    weights: dict[str, float]
    """The weight that the quantizer's paper gives each term."""

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Sum of the terms, each times its weight."""
        total = self.quantized.new_zeros((), dtype=torch.float32)
        for name, term in self.terms.items():
            total = total + self.weights[name] * term
        return total

    def __iter__(self) -> Iterator[Any]:
        return iter((self.quantized, self.loss, self.indices))


class Quantizer(nn.Module, ABC):
    """A layer that maps a latent (B, C, *spatial) to codes and their indices.

    In train mode a forward pass may also move the codebook (initialisation, moving averages, revival of dead codes);
    `freeze()` stops all of that, gradients included. A pass that activation checkpointing repeats moves nothing, and
    `encode` and `decode` never do.
    """

    num_embeddings: int
    """Number of codes; indices lie in [0, num_embeddings). Of each level or group where several make one vector."""
    embedding_dim: int
    """Number of components of a code, the C of the latent."""
    code_shape: tuple[int, ...] = ()
    """Shape of the index of one vector: () for one code, (Q,) for Q levels or groups."""
    frozen: bool = False
    """Whether the codebook is held fixed."""
    held: Sequence[nn.Parameter] = ()
    """What `freeze()` took the gradient from."""
    older_defaults: ClassVar[Mapping[str, Any]] = {}
    """Arguments that older models were saved without, and the value that these models mean."""

    @abstractmethod
    def forward(
        self, z: Shaped[Tensor, "b *c_and_spatial"], mask: Shaped[Tensor, "b ..."] | None = None
    ) -> QuantizerOutput:
        """Quantize.

        Args:
            z: latent (B, C, *spatial), any float dtype; computed in fp32, returned in its dtype.
            mask: bool (B, *spatial), True where a position is valid. What stands at invalid ones, NaN included, is
                never looked at: they are quantized as zeros, without gradient, loss or trace in the codebook.
        """

    @abstractmethod
    def encode(self, z: Shaped[Tensor, "b *c_and_spatial"]) -> Indices:
        """Indices of a latent, without gradient and without learning.

        Raises:
            ValueError: the latent is not finite everywhere; not looked at inside a compiled or exported graph. On a GPU
                the tokens of such an image are -1 instead, which nothing decodes: so nobody has to wait.
        """

    @abstractmethod
    def decode(self, indices: Indices) -> Float[Tensor, "b c *spatial"]:
        """Quantized latent of indices: what `forward` returned as `quantized` in eval mode, in fp32."""

    def decode_progressive(self, indices: Indices) -> list[Float[Tensor, "b c *spatial"]]:
        """Quantized latents after each scale, coarse to fine; the last is `decode(indices)`."""
        return [self.decode(indices)]

    def var_input(self, indices: Indices) -> Float[Tensor, "b l c"]:
        """Input that an autoregressive generator is trained on: here the code vectors in raster order (B, L, C)."""
        z_q = self.decode(indices)
        return z_q.reshape(*z_q.shape[:2], -1).transpose(1, 2)

    @abstractmethod
    def get_codebook(self) -> Float[Tensor, "*parts k d"]:
        """The codes (num_embeddings, embedding_dim), or one such table for each level or group.

        Raises:
            ValueError: an implicit codebook too large to be listed.
        """

    def config(self) -> dict[str, Any]:
        """Constructor arguments, and the class name under "type", in plain JSON types.

        The signature of the constructor is the list: each argument is kept as the attribute of its name. An argument
        in `older_defaults` is left out where it has that value, so that the fingerprints of older models stay.
        """
        older = self.older_defaults
        arguments = {name: _plain(getattr(self, name)) for name in inspect.signature(type(self)).parameters}
        written = {name: value for name, value in arguments.items() if name not in older or value != older[name]}
        return {"type": type(self).__name__} | written

    def code_counts(self) -> list[Int64[Tensor, " k"]] | None:
        """How often training chose each code, in units of 1/1024 of a vector per batch; None: no count was kept.

        One (num_embeddings,) for each scale, and within it for each code of a position (level, group), in this order.
        Whole numbers, so that every machine has the same: an entropy coder starts from them.
        """
        return None

    @property
    def learning(self) -> bool:
        """Whether a forward pass moves the codebook: in train mode, not frozen, not a repeated pass."""
        return self.training and not self.frozen and not recomputing()

    def freeze(self) -> None:
        """Hold the codebook fixed: no gradient, no moving average, no initialisation, no revival.

        Everything that turns indices into vectors is held with it: projections, φ, and the quantizers inside.
        """
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.frozen = True
                module.held = [*module.held, *(p for p in module.parameters() if p.requires_grad)]
        self.requires_grad_(False)
        for parameter in self.parameters():
            parameter.grad = None  # or the next optimizer step would still move it

    def unfreeze(self) -> None:
        """Undo `freeze()`: the codebook moves again, and what had a gradient before has one again."""
        for parameter in self.held:
            parameter.requires_grad_(True)
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.frozen, module.held = False, []

    def _apply(self, fn: Any, recurse: bool = True) -> "Quantizer":
        """Keep fp32 when the model around is cast: `model.to(torch.bfloat16)` must not round codes or counts."""

        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)


def _plain(value: Any) -> Any:
    """A constructor argument in plain JSON types."""
    if isinstance(value, Quantizer):
        return value.config()
    if isinstance(value, nn.ModuleList | list | tuple):
        return [_plain(member) for member in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


@dataclass(frozen=True)
class QuantizedVectors:
    """Vectors that were quantized one by one."""

    indices: Int64[Tensor, "n *code"]
    """What each became: (N,), or (N, Q) where Q codes make one vector."""
    codes: Float[Tensor, "n d"]
    """`lookup(indices)`, with its gradient."""
    distances: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Loss terms, unweighted, that are mean squared distances between vectors and codes."""
    entropies: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Loss terms, unweighted, that are entropies or divergences, in nats."""

    @property
    def terms(self) -> dict[str, Float[Tensor, ""]]:
        """All loss terms."""
        return self.distances | self.entropies


class PointwiseQuantizer(Quantizer):
    """A quantizer that treats every vector alike, wherever it stands."""

    soft: bool = False
    """Whether codes carry a gradient to the vector that chose them."""
    decay: float = 0.99
    """Of moving averages, per training batch."""

    # ---- latents ------------------------------------------------------------------------------------------------

    def forward(
        self, z: Shaped[Tensor, "b *c_and_spatial"], mask: Shaped[Tensor, "b ..."] | None = None
    ) -> QuantizerOutput:
        """See `Quantizer.forward`; indices are (B, *spatial, *code_shape)."""
        check_latent(z, mask, self.embedding_dim)
        with torch.autocast(z.device.type, enabled=False):
            # Padding may hold anything, NaN included: it never enters arithmetic / 填充位置置零，不参与运算
            z_valid = z if mask is None else z.masked_fill(~mask.unsqueeze(1), 0)
            # 1. The vectors, where the codes live: (B, C, *spatial) -> (N, D) / 取出每个向量，投影到码字空间
            u_ND = self.project(to_vectors(z_valid).float())
            valid_N = None if mask is None else mask.reshape(-1)
            if self.learning and self.initialising:
                self.initialise(select(u_ND, valid_N).detach())
            # 2. Codes and losses, over valid positions / 查找码字并计算损失，仅限有效位置
            found = self.quantize_valid(u_ND, valid_N)
            # 3. Forward the code, backward to z / 前向用码字，反向传给 z
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
        with torch.autocast(z.device.type, enabled=False):
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
        with torch.autocast(indices.device.type, enabled=False):
            codes_ND = self.lookup(indices.reshape(-1, *indices.shape[axes:]))
        return from_vectors(codes_ND, tuple(indices.shape[:axes]))

    def get_codebook(self) -> Float[Tensor, "*parts k d"]:
        """See `Quantizer.get_codebook`."""
        if self.num_embeddings > LARGEST_LISTED_CODEBOOK:
            raise ValueError(
                f"get_codebook: {self.num_embeddings} codes are not listed, at most {LARGEST_LISTED_CODEBOOK} are; "
                "decode the indices you need"
            )
        device = next(chain(self.parameters(), self.buffers())).device
        return self.lookup(torch.arange(self.num_embeddings, device=device))

    # ---- vectors ------------------------------------------------------------------------------------------------

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Bring latents to where the codes live (a sphere, a box). A wrapper does this once, before any residual."""
        return z_ND

    @abstractmethod
    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, "n *code"]:
        """Index of the best code for each vector, which need not lie where `project` puts it; deterministic."""

    @abstractmethod
    def lookup(self, indices: Int64[Tensor, "n *code"]) -> Float[Tensor, "n d"]:
        """Codes of indices, in fp32, with a gradient to what makes them."""

    @abstractmethod
    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Choose codes and compute the loss terms. In train mode the choice may be random (Gumbel)."""

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """The weight of each loss term."""

    def estimate(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The values of `codes_ND` with the gradient that `quantized` is to have."""
        return codes_ND if self.soft else straight_through(u_ND, codes_ND)

    @property
    def initialising(self) -> bool:
        """Whether the next training batch still serves to initialise the codebook."""
        return False

    def initialise(self, u_ND: Float[Tensor, "n d"]) -> None:
        """Start the codebook from a training batch of projected vectors."""

    def learn(self, u_ND: Float[Tensor, "n d"], indices: Int64[Tensor, "n *code"]) -> None:
        """Learn from one training batch other than by gradient: moving averages, revival."""

    def residual_scale(self) -> list[float]:
        """How far, in each component, the codes of the next residual level should reach, these reaching 1.

        A learned table finds its own scale (1); a grid with fixed codes must shrink to refine what it left over.
        """
        return [1.0] * self.embedding_dim

    def make_symmetric(self) -> None:
        """Put fixed codes evenly around 0, where what a level before leaves over lies; tables find their own place."""

    def accepts(self, code_shape: tuple[int, ...]) -> bool:
        """Whether `lookup` takes indices (N, *code_shape)."""
        return code_shape == self.code_shape

    def quantize_valid(self, u_ND: Float[Tensor, "n d"], valid_N: Bool[Tensor, " n"] | None) -> QuantizedVectors:
        """`quantize` the valid vectors only; the others get index and code without gradient, loss or trace."""
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
    """A moving average of counts as `Quantizer.code_counts` gives it, on the CPU."""
    return (average_K.cpu().double() * 1024).round().long()
