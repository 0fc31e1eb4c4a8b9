"""What the two quantizers with one bit per component share: signs as codes, bits as indices, entropies as losses.

The codebook, all 2**bits combinations of signs, is implicit: codes are computed from indices and never listed. The
leaves are `lookup_free.py` (signs of the latent) and `binary_spherical.py` (signs on the unit sphere).

Legend: N vectors, D components = bits.
"""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from smalti.ops import bit_entropy, divergence_from_uniform, mean_bit_code_distribution
from smalti.ops.processes import mean_over_processes
from smalti.quantizers.base import mean_square, not_negative, positive
from smalti.quantizers.rows import RowQuantizer, Rows, constant


class BinaryQuantizer(RowQuantizer):
    """One bit per component: loss = beta · ‖u − sg[e]‖² + entropy_weight · (E[H(p)] + gamma · (log K − H(E[p])))."""

    def __init__(
        self,
        embedding_dim: int,
        beta: float,
        *,
        entropy_weight: float,
        gamma: float,
        temperature: float,
        group_size: int,
        highest_first: bool,
    ):
        """
        Args:
            embedding_dim: number of bits, the channels of the latent; there are 2**embedding_dim codes.
            beta: weight of the commitment term.
            entropy_weight: weight of the two entropy terms together.
            gamma: weight of even usage (codebook_divergence) against sureness (sample_entropy).
            temperature: of the soft assignment p(e) ~ exp(-‖u − e‖² / temperature), whose entropies are taken.
            group_size: bits whose combinations are to be used evenly. Groups count as independent of each other: the
                entropy of 2**18 codes cannot be measured on one batch, that of two groups of 9 bits can.
            highest_first: the first component is the highest bit of the index, not the lowest.
        """
        super().__init__()
        positive(embedding_dim=embedding_dim, group_size=group_size)
        not_negative(beta=beta, entropy_weight=entropy_weight, gamma=gamma)
        if embedding_dim > 62:
            raise ValueError(f"embedding_dim: got {embedding_dim} bits, at most 62 fit an int64 index")
        if group_size > 20:
            raise ValueError(f"group_size: got {group_size} bits, expected at most 20")
        if not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, expected more than 0")
        self.embedding_dim, self.num_embeddings, self.beta = embedding_dim, 2**embedding_dim, beta
        self.entropy_weight, self.gamma = entropy_weight, gamma
        self.temperature, self.group_size, self.highest_first = temperature, group_size, highest_first
        self.register_buffer("place", torch.empty(0), persistent=False)  # nothing but the device

    @property
    @abstractmethod
    def amplitude(self) -> float:
        """Size of every component of every code."""

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """Bit d of the index (it counts 2**d, or `highest_first` 2**(D - 1 - d)) is 1 where component d is positive."""
        return ((u_ND > 0).long() * self._worth(u_ND)).sum(dim=1)

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Bits as ± amplitude."""
        return (self.indices_to_bits(indices_N).float() * 2.0 - 1.0) * self.amplitude

    def indices_to_bits(self, indices: Int64[Tensor, "*shape"]) -> Bool[Tensor, "*shape d"]:
        """Bits of indices: bit d belongs to component d of the latent, the least significant unless `highest_first`."""
        return (indices.unsqueeze(-1) // self._worth(indices) % 2).bool()

    def _worth(self, beside: Tensor) -> Tensor:
        """1, 2, 4, …, or these backwards: what the bit of each component adds to the index."""
        powers = [2**d for d in range(self.embedding_dim)]
        return constant(powers[::-1] if self.highest_first else powers, beside, torch.int64)

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> Rows:
        """Signs, and the loss terms."""
        indices_N = self.search(u_ND)
        codes_ND = self.lookup(indices_N)
        # ‖u − e‖² of the two values of a bit differ by 4 · amplitude · u
        logits_ND = u_ND * (4 * self.amplitude / self.temperature)
        return Rows(indices_N, codes_ND, {"commitment": mean_square(u_ND, codes_ND)} | self._entropies(logits_ND))

    def _entropies(self, logits_ND: Tensor) -> dict[str, Tensor]:
        rows = logits_ND.shape[0]
        means = [mean_bit_code_distribution(group) for group in logits_ND.split(self.group_size, dim=1)]
        if self.training:
            means = [mean_over_processes(mean_K, rows) for mean_K in means]
        divergence = torch.stack([divergence_from_uniform(mean_K) for mean_K in means]).sum()
        return {
            "sample_entropy": bit_entropy(logits_ND).sum(dim=1).sum() / max(1, rows),
            "codebook_divergence": divergence * min(1, rows),
        }

    def weights(self) -> dict[str, float]:
        """Commitment beta; even usage gamma times as much as sureness."""
        return {
            "commitment": self.beta,
            "sample_entropy": self.entropy_weight,
            "codebook_divergence": self.entropy_weight * self.gamma,
        }

    def residual_scale(self) -> list[float]:
        """A sign leaves over about half of what it stands for."""
        return [0.5] * self.embedding_dim

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`; `highest_first` only where it is used, so that fingerprints of older models stay."""
        config = {
            "type": type(self).__name__,
            "embedding_dim": self.embedding_dim,
            "beta": self.beta,
            "entropy_weight": self.entropy_weight,
            "gamma": self.gamma,
            "temperature": self.temperature,
            "group_size": self.group_size,
        }
        return config | ({"highest_first": True} if self.highest_first else {})
