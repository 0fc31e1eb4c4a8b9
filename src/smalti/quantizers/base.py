"""What every quantizer is and what it returns.

A quantizer replaces each vector of a latent by one of finitely many codes. Its result unpacks as

    quantized, loss, indices = quantizer(z)

and carries its loss terms by name, unweighted, so that a training script can weigh and log each.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

Indices = Int64[Tensor, "b *grid"] | tuple[Int64[Tensor, "b ..."], ...]
"""Token indices: (B, *grid), or one such tensor per scale, coarse to fine."""


@dataclass(frozen=True)
class QuantizerOutput:
    """Result of a quantizer; unpacks as `quantized, loss, indices`."""

    quantized: Float[Tensor, "b c *spatial"]
    """The latent with every vector replaced by its code; the gradient passes straight through to the input."""
    indices: Indices
    """Which codes: int64 (B, *spatial), or a tuple of one (B, h_k, w_k) per scale, coarse to fine."""
    terms: dict[str, Float[Tensor, ""]]
    """Loss terms by name, unweighted (means over vectors and components)."""
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
    `freeze()` stops all of that, gradients included. `encode` and `decode` never change anything.
    """

    num_embeddings: int
    """Number of codes; indices lie in [0, num_embeddings)."""
    embedding_dim: int
    """Number of components of a code, the C of the latent."""
    frozen: bool = False
    """Whether the codebook is held fixed."""

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "b c *spatial"], mask: Bool[Tensor, "b *spatial"] | None = None
    ) -> QuantizerOutput:
        """Quantize.

        Args:
            z: latent (B, C, *spatial), any float dtype; computed in fp32, returned in the dtype of `z`.
            mask: True where a position is valid. Invalid ones still get an index, but count neither in the loss nor
                in the statistics, and never reach the codebook.
        """

    @abstractmethod
    def encode(self, z: Float[Tensor, "b c *spatial"]) -> Indices:
        """Indices of a latent, without gradient and without learning."""

    @abstractmethod
    def decode(self, indices: Indices) -> Float[Tensor, "b c *spatial"]:
        """Quantized latent of indices: what `forward` returned as `quantized` in eval mode, in fp32."""

    def decode_progressive(self, indices: Indices) -> list[Float[Tensor, "b c *spatial"]]:
        """Quantized latents after each scale, coarse to fine; the last is `decode(indices)`."""
        return [self.decode(indices)]

    def var_input(self, indices: Indices) -> Float[Tensor, "b l c"]:
        """Input that an autoregressive generator is trained on: here the code vectors in raster order (B, L, C)."""
        return self.decode(indices).flatten(2).transpose(1, 2)

    @abstractmethod
    def get_codebook(self) -> Float[Tensor, "k c"]:
        """The codes (num_embeddings, embedding_dim)."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments and the class name under "type", in plain JSON types."""

    def freeze(self) -> None:
        """Hold the codebook fixed: no gradient, no moving average, no initialisation, no revival."""
        self.frozen = True
        self.requires_grad_(False)

    def _check_latent(self, z: Tensor, mask: Tensor | None) -> None:
        if z.dim() < 2 or z.shape[1] != self.embedding_dim:
            raise ValueError(
                f"z: got shape {tuple(z.shape)}, expected (B, {self.embedding_dim}, *spatial) as embedding_dim says"
            )
        if mask is not None and mask.shape != (z.shape[0], *z.shape[2:]):
            raise ValueError(f"mask: got shape {tuple(mask.shape)}, expected {(z.shape[0], *z.shape[2:])}")


def check_indices(indices: Tensor, num_embeddings: int, name: str = "indices") -> None:
    """Refuse what cannot be looked up: a wrong dtype, or values outside [0, num_embeddings)."""
    if indices.is_floating_point() or indices.dtype == torch.bool:
        raise ValueError(f"{name}: got dtype {indices.dtype}, expected int64")
    if indices.numel() == 0:
        return
    low, high = (int(value) for value in indices.aminmax())
    if low < 0 or high >= num_embeddings:
        bad = low if low < 0 else high
        raise ValueError(f"{name}: got the value {bad}, allowed are 0 to {num_embeddings - 1}")


def to_rows(z: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "n c"]:
    """Channels-first latent (B, C, *spatial) to one vector a row (N, C), N = B * prod(spatial)."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def from_rows(z_ND: Float[Tensor, "n c"], batch_and_grid: tuple[int, ...]) -> Float[Tensor, "b c *spatial"]:
    """Inverse of `to_rows`: rows (N, C) to (B, C, *spatial), given (B, *spatial)."""
    return z_ND.reshape(*batch_and_grid, z_ND.shape[1]).movedim(-1, 1)


def positive(**values: float) -> None:
    """Refuse arguments that must be at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
