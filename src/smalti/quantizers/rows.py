"""The contract that makes quantizers combinable: what they do with one vector after another.

A quantizer that treats every position alike works on rows (N, D), one vector a row. It says how rows become codes
(below), and gets `forward`, `encode` and `decode` for latents (B, C, *spatial) from this class. A wrapper
(`projected.py`, `residual.py`, `grouped.py`, `multi_scale.py`) calls the same methods of the quantizer inside it, so
that any of them can wrap any other.

The path of a row, and who may have a gradient:

    z --project--> u --search--> index --lookup--> code --estimate--> quantized
                   (no gradient)      (to the codebook)  (to u: straight through, rotation, …)

Two kinds of quantizers differ in where the gradient of `quantized` goes. Of a hard one (`soft = False`) `lookup` ends
in the codebook and `estimate` replaces that path by one to u. Of a soft one (index back-propagation, Gumbel, a
projection around any) the codes carry their own gradient to u and `estimate` leaves them alone.

Legend: N vectors (valid positions of the batch), D components.
图例:N 个向量(批次中的有效位置),D 维。
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from smalti.ops import straight_through
from smalti.quantizers.base import (
    Indices,
    Quantizer,
    QuantizerOutput,
    check_finite,
    check_indices,
    from_rows,
    marked,
    to_rows,
)

LARGEST_LISTED_CODEBOOK = 2**20
"""Implicit codebooks with more codes are never written out."""


@dataclass(frozen=True)
class Rows:
    """Vectors quantized one by one."""

    indices: Int64[Tensor, "n *code"]
    """What each became: (N,), or (N, Q) where Q codes make one vector."""
    codes: Float[Tensor, "n d"]
    """`lookup(indices)`, with its gradient."""
    terms: dict[str, Float[Tensor, ""]]
    """Loss terms, unweighted."""


class RowQuantizer(Quantizer):
    """A quantizer that treats every vector alike, wherever it stands."""

    soft: bool = False
    """Whether codes carry a gradient to the vector that chose them."""
    decay: float = 0.99
    """Of moving averages, per training batch."""

    # ---- the contract, for latents ------------------------------------------------------------------------------

    def forward(
        self, z: Shaped[Tensor, "b *c_and_spatial"], mask: Shaped[Tensor, "b ..."] | None = None
    ) -> QuantizerOutput:
        """See `Quantizer.forward`; indices are (B, *spatial, *code_shape)."""
        self._check_latent(z, mask)
        with torch.autocast(z.device.type, enabled=False):
            # Padding may hold anything, NaN included: it never enters arithmetic / 填充位置置零,不参与运算
            z_valid = z if mask is None else z.masked_fill(~mask.unsqueeze(1), 0)
            # 1. One vector a row, where the codes live: (B, C, *spatial) -> (N, D) / 每行一个向量,投影到码字空间
            u_ND = self.project(to_rows(z_valid).float())
            valid_N = None if mask is None else mask.reshape(-1)
            if self.learning and self.initialising:
                self.initialise(select(u_ND, valid_N).detach())
            # 2. Codes and losses, over valid positions / 查找码字并计算损失,仅限有效位置
            rows = self.quantize_valid(u_ND, valid_N)
            # 3. Forward the code, backward to z / 前向用码字,反向传给 z
            quantized_ND = self.estimate(u_ND, rows.codes)
            if self.learning:
                self.learn(select(u_ND, valid_N).detach(), select(rows.indices, valid_N))
        grid = (z.shape[0], *z.shape[2:])
        return QuantizerOutput(
            quantized=from_rows(quantized_ND, grid).to(z.dtype),
            indices=rows.indices.reshape(*grid, *self.code_shape),
            terms=rows.terms,
            weights={name: weight for name, weight in self.weights().items() if name in rows.terms},
        )

    @torch.no_grad()
    def encode(self, z: Shaped[Tensor, "b *c_and_spatial"]) -> Indices:
        """Indices (B, *spatial, *code_shape) of a latent (B, C, *spatial)."""
        self._check_latent(z, None)
        check_finite(z)
        with torch.autocast(z.device.type, enabled=False):
            indices = self.search(self.project(to_rows(z).float()))
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
        return from_rows(codes_ND, tuple(indices.shape[:axes]))

    def get_codebook(self) -> Float[Tensor, "*parts k d"]:
        """See `Quantizer.get_codebook`."""
        if self.num_embeddings > LARGEST_LISTED_CODEBOOK:
            raise ValueError(
                f"get_codebook: {self.num_embeddings} codes are not listed, at most {LARGEST_LISTED_CODEBOOK} are; "
                "decode the indices you need"
            )
        device = next(chain(self.parameters(), self.buffers())).device
        return self.lookup(torch.arange(self.num_embeddings, device=device))

    # ---- the contract, for rows ---------------------------------------------------------------------------------

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
    def quantize(self, u_ND: Float[Tensor, "n d"]) -> Rows:
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

    # ---- shared parts -------------------------------------------------------------------------------------------

    def quantize_valid(self, u_ND: Float[Tensor, "n d"], valid_N: Bool[Tensor, " n"] | None) -> Rows:
        """`quantize` the valid rows only; the others get their index and code without gradient, loss or trace."""
        if valid_N is None:
            return self.quantize(u_ND)
        rows = self.quantize(u_ND[valid_N])
        others = self.search(u_ND[~valid_N].detach())
        indices = others.new_empty((u_ND.shape[0], *self.code_shape))
        indices[valid_N], indices[~valid_N] = rows.indices, others
        codes_ND = torch.zeros_like(u_ND).index_put((valid_N,), rows.codes)
        codes_ND = codes_ND.index_put((~valid_N,), self.lookup(others).detach())
        return Rows(indices, codes_ND, rows.terms)


def constant(values: Sequence[int | float], beside: Tensor, dtype: torch.dtype) -> Shaped[Tensor, " n"]:
    """Plain numbers as a tensor on the device of another.

    Constants that decide what an index means are plain numbers, not buffers: a buffer that is not saved is lost when a
    model is built on the meta device. Not blocking, so that a GPU is not waited for.
    """
    return torch.tensor(values, dtype=dtype, device="cpu").to(beside.device, non_blocking=True)


def select(rows: Tensor, valid_N: Tensor | None) -> Tensor:
    """The rows at valid positions; all of them without a mask."""
    return rows if valid_N is None else rows[valid_N]
