"""What every quantizer is and what it returns.

A quantizer replaces each vector of a latent by one of finitely many codes. Its result unpacks as

    quantized, loss, indices = quantizer(z)

and carries its loss terms by name, unweighted, so that a training script can weigh and log each.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from smalti.ops import recomputing
from smalti.ops.graphs import recording
from smalti.ops.waiting import reads_are_free, worth_a_wait

Indices = Shaped[Tensor, "b *grid"] | Sequence[Shaped[Tensor, "b ..."]]
"""Token indices, int64: (B, *grid), or one such tensor per scale, coarse to fine.

The type is loose on purpose: what cannot be looked up is refused by `check_indices` with a sentence.
"""

INVALID = -1
"""The index of a vector that has no code. Nothing decodes it, and no file takes it."""


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

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments and the class name under "type", in plain JSON types."""

    def code_counts(self) -> list[Int64[Tensor, " k"]] | None:
        """How often training chose each code, in units of 1/1024 of a vector a batch; None where no count was kept.

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

    def _check_latent(self, z: Tensor, mask: Tensor | None) -> None:
        if z.dim() < 2 or z.shape[1] != self.embedding_dim:
            raise ValueError(
                f"z: got shape {tuple(z.shape)}, expected (B, {self.embedding_dim}, *spatial) as embedding_dim says"
            )
        if not z.is_floating_point():
            raise ValueError(f"z: got dtype {z.dtype}, expected a floating-point dtype")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (z.shape[0], *z.shape[2:])):
            raise ValueError(
                f"mask: got {mask.dtype} of shape {tuple(mask.shape)}, expected bool of {(z.shape[0], *z.shape[2:])}"
            )


def check_finite(z: Tensor) -> None:
    """Refuse a latent with NaN or infinities, whose codes would mean nothing; see `marked` for where nobody looks."""
    if not reads_are_free(z) or z.device.type == "meta":
        return
    bad = z.numel() - int(z.isfinite().sum())
    if bad:
        raise ValueError(f"z: got non-finite values ({bad} of {z.numel()} are NaN or infinite), expected finite ones")


def marked(indices: Int64[Tensor, "b *grid"], z: Float[Tensor, "b *c_and_spatial"]) -> Int64[Tensor, "b *grid"]:
    """On a GPU, which `check_finite` does not wait for: `INVALID` for all tokens of an image with such a latent."""
    if reads_are_free(z) or recording() or z.device.type == "meta":
        return indices
    finite_B = z.isfinite().flatten(1).all(dim=1)
    return indices.masked_fill(~finite_B.reshape(-1, *[1] * (indices.dim() - 1)), INVALID)


def check_indices(indices: Any, num_embeddings: int, name: str = "indices") -> None:
    """Refuse what cannot be looked up: another dtype than int64, or values outside [0, num_embeddings).

    Where torch records a graph (`ops/graphs.py`) and in training on a GPU values are not looked at.
    """
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        raise ValueError(f"{name}: got {getattr(indices, 'dtype', type(indices).__name__)}, expected an int64 tensor")
    if indices.numel() == 0 or not worth_a_wait(indices):
        return
    low, high = (int(value) for value in indices.aminmax())
    if low < 0 or high >= num_embeddings:
        bad = low if low < 0 else high
        why = " (it stands for an image with values out of range or not finite)" if bad == INVALID else ""
        raise ValueError(f"{name}: got the value {bad}{why}, allowed are 0 to {num_embeddings - 1}")


def to_rows(z: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "n c"]:
    """Channels-first latent (B, C, *spatial) to one vector a row (N, C), N = B * prod(spatial)."""
    return z.movedim(1, -1).contiguous().flatten(0, -2)


def from_rows(z_ND: Float[Tensor, "n c"], batch_and_grid: tuple[int, ...]) -> Float[Tensor, "b c *spatial"]:
    """Inverse of `to_rows`: rows (N, C) to (B, C, *spatial), given (B, *spatial)."""
    return z_ND.reshape(*batch_and_grid, z_ND.shape[1]).movedim(-1, 1)


DISTANCE_TERMS = frozenset({"codebook", "commitment", "double_quantization"})
"""Loss terms that are squared distances between latents and codes; the others are entropies, in nats."""


def whole_counts(average_K: Float[Tensor, " k"]) -> Int64[Tensor, " k"]:
    """A moving average of counts as `Quantizer.code_counts` gives it, on the CPU."""
    return (average_K.cpu().double() * 1024).round().long()


def average_terms(parts: Iterable[dict[str, Float[Tensor, ""]]]) -> dict[str, Float[Tensor, ""]]:
    """Mean of each term over the parts (levels, groups, scales) that have it."""
    collected: dict[str, list[Tensor]] = {}
    for terms in parts:
        for name, term in terms.items():
            collected.setdefault(name, []).append(term)
    return {name: torch.stack(values).mean() for name, values in collected.items()}


def mean_square(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean squared difference; 0, not NaN, when there is nothing to compare (everything masked)."""
    return F.mse_loss(a, b) if a.numel() else (a.sum() + b.sum()) * 0.0


def not_negative(**values: int | float) -> None:
    """Refuse arguments that must be at least 0."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name}: got {value}, expected at least 0")


def positive(**values: int) -> None:
    """Refuse arguments that must be at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
