"""Latents, vectors and indices as tensors: conversions and checks.

Legend: B images, C dimensions, N vectors (all positions of the batch).
图例：B 张图像，C 维，N 个向量（批次中的所有位置）。
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from smalti.checks import is_a
from smalti.ops.graphs import recording
from smalti.ops.waiting import reads_are_free, worth_a_wait

INVALID = -1
"""The index of a vector that has no code. Decoders and token files refuse it."""


def to_vectors(z: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "n c"]:
    """Channels-first latent (B, C, *spatial) to its vectors (N, C), N = B * prod(spatial)."""
    return z.movedim(1, -1).contiguous().flatten(0, -2)


def from_vectors(z_ND: Float[Tensor, "n c"], batch_and_grid: tuple[int, ...]) -> Float[Tensor, "b c *spatial"]:
    """Inverse of `to_vectors`: (N, C) to (B, C, *spatial), given (B, *spatial)."""
    return z_ND.reshape(*batch_and_grid, z_ND.shape[1]).movedim(-1, 1)


def select(values: Shaped[Tensor, "n *rest"], valid_N: Bool[Tensor, " n"] | None) -> Shaped[Tensor, "m *rest"]:
    """The values at valid positions; all values if there is no mask."""
    return values if valid_N is None else values[valid_N]


def constant(numbers: Sequence[int | float], beside: Tensor, dtype: torch.dtype) -> Shaped[Tensor, " n"]:
    """Plain numbers as a tensor on the device of `beside`.

    Constants that define the meaning of an index are plain numbers, not buffers: an unsaved buffer is lost when a
    model is built on the meta device. The copy does not block, so the program does not wait for a GPU.
    """
    return torch.tensor(numbers, dtype=dtype, device="cpu").to(beside.device, non_blocking=True)


def check_latent(z: Tensor, mask: Tensor | None, embedding_dim: int) -> None:
    """Refuse a `z` that is not a float latent (B, embedding_dim, *spatial), or a mask that does not fit it."""
    is_a(Tensor, z=z)
    if z.dim() < 2 or z.shape[1] != embedding_dim:
        raise ValueError(
            f"z: got shape {tuple(z.shape)}, expected (B, {embedding_dim}, *spatial) for embedding_dim {embedding_dim}"
        )
    if not z.is_floating_point():
        raise ValueError(f"z: got dtype {z.dtype}, expected a floating-point dtype")
    if mask is not None:
        is_a(Tensor, mask=mask)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (z.shape[0], *z.shape[2:])):
        raise ValueError(
            f"mask: got {mask.dtype} of shape {tuple(mask.shape)}, expected bool of {(z.shape[0], *z.shape[2:])}"
        )


def check_finite(z: Tensor) -> None:
    """Refuse a latent with NaN or infinite values, as its codes would be meaningless; on a GPU see `marked`."""
    if not reads_are_free(z):
        return
    bad = z.numel() - int(z.isfinite().sum())
    if bad:
        raise ValueError(f"z: got non-finite values ({bad} of {z.numel()} are NaN or infinite), expected finite values")


def marked(indices: Int64[Tensor, "b *grid"], z: Float[Tensor, "b *c_and_spatial"]) -> Int64[Tensor, "b *grid"]:
    """On a GPU, in place of `check_finite`: all tokens of an image with a non-finite latent become `INVALID`."""
    if reads_are_free(z) or recording():
        return indices
    finite_B = z.isfinite().flatten(1).all(dim=1)
    return indices.masked_fill(~finite_B.reshape(-1, *[1] * (indices.dim() - 1)), INVALID)


def check_indices(indices: Any, num_embeddings: int, name: str = "indices") -> None:
    """Refuse indices of another dtype than int64, or with values outside [0, num_embeddings).

    Values are not checked where torch records a graph (`ops/graphs.py`), nor in training on a GPU.
    """
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise ValueError(f"{name}: got {kind}, expected an int64 tensor")
    if indices.numel() == 0 or not worth_a_wait(indices):
        return
    low, high = (int(value) for value in indices.aminmax())
    if low < 0 or high >= num_embeddings:
        bad = low if low < 0 else high
        why = " (it marks an image with non-finite or out-of-range values)" if bad == INVALID else ""
        raise ValueError(f"{name}: got the value {bad}{why}, expected 0 to {num_embeddings - 1}")
