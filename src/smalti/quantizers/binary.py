"""One bit per dimension: the codes are signs, the indices are bits, the losses are entropies.

The codebook of all 2**bits combinations of signs is implicit: codes are computed from indices. The two classes differ
in the length of codes: LFQ takes the signs of the latent directly (codes ±1), BSQ first projects the latent to the unit
sphere (codes ±1/√D).

An index is an int64 and holds at most 62 bits. With `bitwise` every bit is an index of its own, 0 or 1, so there may be
any number of them: Infinity (Han et al. 2024, arXiv 2412.04431) has up to 64 per position.
每一维一个比特：码字是符号，索引是比特，损失是熵。LFQ 直接取符号（±1），BSQ 先投影到单位球面（±1/√D）。
索引是 int64，最多容纳 62 个比特。设置 `bitwise` 时每个比特单独作为一个索引（0 或 1），个数不限：
Infinity 每个位置最多 64 个。

`finite_scalar.py` is the same idea with more values per dimension, a bounded latent and no entropy loss.

Legend: N vectors, D dimensions = bits.
图例：N 个向量，D 维 = 比特数。
"""

import math
from abc import abstractmethod
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from smalti.checks import above_zero, at_least, between, expect
from smalti.distributed import mean_over_processes
from smalti.formats.arguments import checked
from smalti.ops import bit_entropy, divergence_from_uniform, mean_bit_code_distribution, unit_sphere
from smalti.quantizers.base import PointwiseQuantizer, QuantizedVectors, mean_square
from smalti.quantizers.latents import constant


class BinaryQuantizer(PointwiseQuantizer):
    """One bit per dimension: loss = beta · ‖u − sg[e]‖² + entropy_weight · (E[H(p)] + gamma · (log K − H(E[p])))."""

    older_defaults: ClassVar = {"highest_first": False, "bitwise": False}

    @checked
    def __init__(
        self,
        embedding_dim: int,
        beta: float = 0.25,
        *,
        entropy_weight: float = 0.1,
        gamma: float = 1.0,
        temperature: float = 0.01,
        group_size: int = 9,
        highest_first: bool = False,
        bitwise: bool = False,
    ):
        """
        Args:
            embedding_dim: number of bits, the channels of the latent; there are 2**embedding_dim codes.
            beta: weight of the commitment term.
            entropy_weight: weight of the two entropy terms together.
            gamma: weight of codebook_divergence (uniform usage) relative to sample_entropy (confident assignment).
            temperature: temperature of the soft assignment p(e) ~ exp(-‖u − e‖² / temperature) in the entropy terms.
            group_size: bits per group in codebook_divergence. Groups are treated as independent: one batch is too small
                to estimate the entropy of 2**18 codes, but not of two groups of 9 bits.
            highest_first: True: the first dimension is the highest bit of the index; False: the lowest.
            bitwise: True: every bit is an index of its own, (N, D) in the order of the dimensions; False: the bits of a
                vector make one index, (N,), of at most 62 bits.
        """
        super().__init__()
        at_least(1, embedding_dim=embedding_dim)
        if not bitwise:
            between(1, 62, embedding_dim=embedding_dim)  # an index is an int64
        expect(not (bitwise and highest_first), "highest_first", highest_first, "False with bitwise")
        between(1, 20, group_size=group_size)
        at_least(0, beta=beta, entropy_weight=entropy_weight, gamma=gamma)
        above_zero(temperature=temperature)
        self.embedding_dim, self.num_embeddings, self.beta = embedding_dim, 2 if bitwise else 2**embedding_dim, beta
        self.bitwise, self.code_shape = bitwise, (embedding_dim,) if bitwise else ()
        self.entropy_weight, self.gamma = entropy_weight, gamma
        self.temperature, self.group_size, self.highest_first = temperature, group_size, highest_first
        self.register_buffer("on_device", torch.empty(0), persistent=False)  # holds the device

    @property
    @abstractmethod
    def amplitude(self) -> float:
        """Absolute value of all dimensions of all codes."""

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, "n *code"]:
        """Bit d of the index (value 2**d, with `highest_first` 2**(D - 1 - d)) is 1 where dimension d is positive."""
        bits_ND = (u_ND > 0).long()
        return bits_ND if self.bitwise else (bits_ND * self._bit_values(u_ND)).sum(dim=1)

    def lookup(self, indices: Int64[Tensor, "n *code"]) -> Float[Tensor, "n d"]:
        """Bits 1 and 0 as + and − amplitude."""
        bits_ND = indices.bool() if self.bitwise else self.indices_to_bits(indices)
        return (bits_ND.float() * 2.0 - 1.0) * self.amplitude

    def get_codebook(self) -> Float[Tensor, "k d"]:
        """See `Quantizer.get_codebook`."""
        if self.bitwise:
            raise ValueError("get_codebook: got a bitwise quantizer, which lists no codes; decode the bits instead")
        return super().get_codebook()

    def indices_to_bits(self, indices: Int64[Tensor, "*shape"]) -> Bool[Tensor, "*shape d"]:
        """Bits of indices: bit d belongs to dimension d of the latent, lowest bit first unless `highest_first`."""
        return (indices.unsqueeze(-1) // self._bit_values(indices) % 2).bool()

    def _bit_values(self, beside: Tensor) -> Tensor:
        """Value in the index of each dimension's bit: 1, 2, 4, …, or in reverse order."""
        powers = [2**d for d in range(self.embedding_dim)]
        return constant(powers[::-1] if self.highest_first else powers, beside, torch.int64)

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Signs and loss terms. 取符号，并计算损失项。"""
        indices = self.search(u_ND)
        codes_ND = self.lookup(indices)
        # The two values of a bit differ in ‖u − e‖² by 4 · amplitude · u / 一个比特的两种取值之差
        logits_ND = u_ND * (4 * self.amplitude / self.temperature)
        distances = {"commitment": mean_square(u_ND, codes_ND)}
        return QuantizedVectors(indices, codes_ND, distances, self._entropies(logits_ND))

    def _entropies(self, logits_ND: Tensor) -> dict[str, Tensor]:
        vectors = logits_ND.shape[0]
        means = [mean_bit_code_distribution(group) for group in logits_ND.split(self.group_size, dim=1)]
        if self.training:
            means = [mean_over_processes(mean_K, vectors) for mean_K in means]
        divergence = torch.stack([divergence_from_uniform(mean_K) for mean_K in means]).sum()
        return {
            "sample_entropy": bit_entropy(logits_ND).sum(dim=1).sum() / max(1, vectors),
            "codebook_divergence": divergence * min(1, vectors),
        }

    def weights(self) -> dict[str, float]:
        """Commitment `beta`; sample_entropy `entropy_weight`; codebook_divergence `entropy_weight * gamma`."""
        return {
            "commitment": self.beta,
            "sample_entropy": self.entropy_weight,
            "codebook_divergence": self.entropy_weight * self.gamma,
        }

    def residual_scale(self) -> list[float]:
        """The residual of a sign is about half as large as the sign's value."""
        return [0.5] * self.embedding_dim


@final
class LookupFreeQuantizer(BinaryQuantizer):
    """Codes ±1 per dimension; terms commitment, sample_entropy, codebook_divergence.

    Source: Yu et al. 2023, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (MAGVIT-v2, arXiv
    2310.05737), section 3.1; entropy over groups of bits and weights as in Open-MAGVIT2 (Luo et al. 2024, arXiv
    2409.04410). Arguments as in `BinaryQuantizer`.

    >>> lfq = LookupFreeQuantizer(embedding_dim=18)  # 2**18 codes
    >>> quantized, loss, indices = lfq(torch.randn(1, 18, 8, 8))  # (1, 18, 8, 8), (), (1, 8, 8)
    """

    @property
    def amplitude(self) -> float:
        """1."""
        return 1.0


@final
class BinarySphericalQuantizer(BinaryQuantizer):
    """Codes ±1/√D per dimension; terms commitment, sample_entropy, codebook_divergence.

    Source: Zhao et al. 2024, "Image and Video Tokenization with Binary Spherical Quantization" (arXiv 2406.07548).
    Vectors are projected to the unit sphere first. The quantization error is then bounded, so the commitment term can
    be omitted (beta = 0, as in the paper's code), and assignments are soft at temperature 1.

    >>> bsq = BinarySphericalQuantizer(embedding_dim=18)  # 2**18 codes
    >>> quantized, loss, indices = bsq(torch.randn(1, 18, 8, 8))  # (1, 18, 8, 8), (), (1, 8, 8)
    """

    @checked
    def __init__(
        self,
        embedding_dim: int,
        beta: float = 0.0,
        *,
        entropy_weight: float = 0.1,
        gamma: float = 1.0,
        temperature: float = 1.0,
        group_size: int = 9,
        highest_first: bool = False,
        bitwise: bool = False,
    ):
        """Arguments as in `BinaryQuantizer`, with other defaults."""
        super().__init__(
            embedding_dim,
            beta,
            entropy_weight=entropy_weight,
            gamma=gamma,
            temperature=temperature,
            group_size=group_size,
            highest_first=highest_first,
            bitwise=bitwise,
        )

    @property
    def amplitude(self) -> float:
        """1/√D: every code has length 1."""
        return 1 / math.sqrt(self.embedding_dim)

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Project to the unit sphere."""
        return unit_sphere(z_ND)
