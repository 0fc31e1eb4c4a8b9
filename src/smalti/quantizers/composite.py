"""Several codes per vector: residual levels, which are added, and groups of channels, which are concatenated.

`CompositeQuantizer` is the common base: each part has its own codebook, or all parts share one. Q parts of K codes
represent K**Q vectors. Levels are quantized one after the other, groups independently. `multi_scale.py` refines
resolution, residual levels refine values.
一个向量用多个码字表示：残差各级相加，通道各组拼接。

Legend: N vectors, D dimensions, Q parts (residual levels or groups of channels).
图例：N 个向量，D 维，Q 个部分（残差级或通道组）。
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from smalti.checks import between
from smalti.formats.arguments import checked
from smalti.quantizers.base import Indices, PointwiseQuantizer, QuantizedVectors, average_terms
from smalti.quantizers.latents import constant


class CompositeQuantizer(PointwiseQuantizer):
    """Several quantizers, each with one code per vector; indices are (…, Q)."""

    def __init__(self, quantizers: Sequence[PointwiseQuantizer], count: int | None, what: str):
        """
        Args:
            quantizers: one per part, or a single one that all parts share.
            count: number of parts; None: as many as quantizers.
            what: name of the argument `count`, for messages.
        """
        super().__init__()
        count = len(quantizers) if count is None else count
        if not quantizers or count < 1 or len(quantizers) not in (1, count):
            raise ValueError(
                f"quantizers: got {len(quantizers)} for {what}={count}, expected one per part or one for all parts"
            )
        parts = [id(module) for quantizer in quantizers for module in quantizer.modules()]
        if len(set(parts)) < len(parts):
            raise ValueError(
                f"quantizers: got the same object twice, expected it once; to share it, pass it with {what}={count}"
            )
        first = quantizers[0]
        for quantizer in quantizers:
            for name in ("num_embeddings", "embedding_dim", "code_shape", "soft"):
                if getattr(quantizer, name) != getattr(first, name):
                    raise ValueError(
                        f"quantizers: got {name} {getattr(first, name)} and {getattr(quantizer, name)}, "
                        "expected the same in all"
                    )
            if quantizer.weights() != first.weights():
                raise ValueError(
                    f"quantizers: got loss weights {first.weights()} and {quantizer.weights()}, expected equal ones"
                )
        self.quantizers = nn.ModuleList(quantizers)
        self.count, self.num_embeddings, self.soft = count, first.num_embeddings, first.soft
        self.code_shape = (count, *first.code_shape)

    def part(self, q: int) -> PointwiseQuantizer:
        """The quantizer of part q."""
        quantizer = self.quantizers[q if len(self.quantizers) > 1 else 0]
        assert isinstance(quantizer, PointwiseQuantizer)
        return quantizer

    @abstractmethod
    def vectors(
        self, u_ND: Float[Tensor, "n d"], indices: Int64[Tensor, "n q *code"]
    ) -> Iterable[Float[Tensor, "n _"]]:
        """The input of each part, given the chosen `indices`."""

    @property
    def initialising(self) -> bool:
        """Whether any part is initialising."""
        return any(self.part(q).initialising for q in range(len(self.quantizers)))

    @torch.no_grad()
    def initialise(self, u_ND: Float[Tensor, "n d"]) -> None:
        """Initialise each codebook, in order, from the inputs of all parts that use it."""
        for q, quantizer in enumerate(self.quantizers):
            vectors = list(self.vectors(u_ND, self.search(u_ND)))
            assert isinstance(quantizer, PointwiseQuantizer)
            quantizer.initialise(vectors[q] if len(self.quantizers) > 1 else _in_batch_order(vectors))

    @torch.no_grad()
    def learn(self, u_ND: Float[Tensor, "n d"], indices: Int64[Tensor, "n q *code"]) -> None:
        """Update each codebook once, from all parts that use it."""
        vectors, chosen = list(self.vectors(u_ND, indices)), indices.unbind(dim=1)
        if len(self.quantizers) == 1:
            vectors, chosen = [_in_batch_order(vectors)], (indices.flatten(0, 1),)
        for q, (vectors_ND, indices_N) in enumerate(zip(vectors, chosen, strict=True)):
            self.part(q).learn(vectors_ND, indices_N)

    def make_symmetric(self) -> None:
        """See `PointwiseQuantizer.make_symmetric`: all parts."""
        for q in range(len(self.quantizers)):
            self.part(q).make_symmetric()

    def weights(self) -> dict[str, float]:
        """The weights of the parts; terms are means over parts."""
        return self.part(0).weights()

    def get_codebook(self) -> Float[Tensor, "*parts k d"]:
        """One table per part: (Q, num_embeddings, embedding_dim of a part)."""
        return torch.stack([self.part(q).get_codebook() for q in range(self.count)])

    def code_counts(self) -> list[Int64[Tensor, " k"]] | None:
        """The counts of the parts; parts that share a codebook share one count."""
        counts = [self.part(q).code_counts() for q in range(self.count)]
        kept = [of_part for of_part in counts if of_part is not None]
        return [count for of_part in kept for count in of_part] if len(kept) == len(counts) else None


@final
class ResidualQuantizer(CompositeQuantizer):
    """Q levels, coarse to fine; each quantizes the residual of the levels before it; indices (B, *spatial, Q).

    Source: SoundStream (Zeghidour et al. 2021, arXiv 2107.03312), section 3.3, for one codebook per level and
    quantizer dropout; RQ-VAE (Lee et al. 2022, arXiv 2203.01941) for images and one codebook for all levels; the scales
    of fixed grids follow the residual FSQ of vector-quantize-pytorch.

    >>> rq = ResidualQuantizer([VectorQuantizer(1024, 64) for _ in range(4)])
    >>> quantized, loss, indices = rq(torch.randn(1, 64, 8, 8))  # (1, 64, 8, 8), (), (1, 8, 8, 4)

    Decoding also works with the first levels only: `rq.decode(indices[..., :2])`.
    """

    scales: list[list[float]]
    """Factor of the codes of each level, (Q, D): 1 for learned tables, decreasing for fixed grids."""

    older_defaults: ClassVar = {"symmetric": False}

    @checked
    def __init__(
        self,
        quantizers: Sequence[PointwiseQuantizer],
        *,
        num_quantizers: int | None = None,
        quantizer_dropout: float = 0.0,
        symmetric: bool = True,
    ):
        """
        Args:
            quantizers: one per level, or a single one that all levels share.
            num_quantizers: number of levels Q; None: as many as quantizers.
            quantizer_dropout: probability that a training pass decodes only the first n levels, with n drawn from 1 to
                Q, so that one model works at all rates. The other levels still learn from the pass.
            symmetric: make fixed grids symmetric (`make_symmetric`); otherwise levels after the first leave codes
                unused. False: as in older models, and in a saved configuration without this argument.
        """
        super().__init__(quantizers, num_quantizers, "num_quantizers")
        between(0, 1, quantizer_dropout=quantizer_dropout)
        self.embedding_dim, self.num_quantizers = quantizers[0].embedding_dim, self.count
        self.quantizer_dropout, self.symmetric = quantizer_dropout, symmetric
        if symmetric:
            self.make_symmetric()
        scales = [torch.ones(self.embedding_dim, dtype=torch.float32, device="cpu")]
        for q in range(self.count - 1):
            scales.append(scales[-1] * _fp32(self.part(q).residual_scale()))
        self.scales = [scale_D.tolist() for scale_D in scales]

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Project as the first level does; residuals are computed after the projection."""
        return self.part(0).project(z_ND)

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, "n q *code"]:
        """Search level by level. 逐级搜索。"""
        chosen: list[Tensor] = []
        total_ND = torch.zeros_like(u_ND)
        for q, scale_D in enumerate(self._scales(u_ND)):
            chosen.append(self.part(q).search((u_ND - total_ND) / scale_D))
            total_ND = total_ND + self.part(q).lookup(chosen[q]).detach() * scale_D
        return torch.stack(chosen, dim=1)

    def lookup(self, indices: Int64[Tensor, "n q *code"]) -> Float[Tensor, "n d"]:
        """Sum of the codes of all given levels."""
        *_, total_ND = self._partial_sums(indices)
        return total_ND

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Quantize level by level; terms are means over levels. 逐级量化残差；损失项对各级取平均。"""
        chosen, distances, entropies = [], [], []
        total_ND = kept_ND = torch.zeros_like(u_ND)
        keep_Q = self._kept_levels(u_ND.device)
        for q, scale_D in enumerate(self._scales(u_ND)):
            # Hard codes are constants for the next level; soft codes depend on u, and the gradient passes through them
            # 硬码字对下一级是常数；软码字依赖 u，梯度要经过它
            residual_ND = u_ND - (total_ND if self.soft else total_ND.detach())
            found = self.part(q).quantize(residual_ND / scale_D)
            codes_ND = found.codes * scale_D
            total_ND = total_ND + codes_ND
            kept_ND = total_ND if keep_Q is None else kept_ND + keep_Q[q] * codes_ND
            chosen.append(found.indices)
            # Distances: convert from units of the level to units of the latent / 距离换回潜变量的单位
            area = scale_D.square().mean()
            distances.append({name: term * area for name, term in found.distances.items()})
            entropies.append(found.entropies)
        return QuantizedVectors(torch.stack(chosen, dim=1), kept_ND, average_terms(distances), average_terms(entropies))

    def estimate(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The gradient estimator of the levels, applied to the sum of codes."""
        return self.part(0).estimate(u_ND, codes_ND)

    def vectors(
        self, u_ND: Float[Tensor, "n d"], indices: Int64[Tensor, "n q *code"]
    ) -> Iterator[Float[Tensor, "n d"]]:
        """The residual before each level, in units of its scale."""
        sums = [torch.zeros_like(u_ND), *self._partial_sums(indices)]
        return ((u_ND - before) / scale_D for before, scale_D in zip(sums, self._scales(u_ND), strict=False))

    def decode_progressive(self, indices: Indices) -> list[Float[Tensor, "b c *spatial"]]:
        """Quantized latents after each level, coarse to fine."""
        self.decode(indices)  # refuses invalid indices
        assert isinstance(indices, Tensor)
        levels = -len(self.code_shape)
        return [self.decode(indices.narrow(levels, 0, n + 1)) for n in range(indices.shape[levels])]

    def accepts(self, code_shape: tuple[int, ...]) -> bool:
        """The first n levels, for any n from 1 to Q."""
        return len(code_shape) > 0 and 1 <= code_shape[0] <= self.count and self.part(0).accepts(code_shape[1:])

    def residual_scale(self) -> list[float]:
        """Range of the residual after all levels."""
        return (_fp32(self.scales[-1]) * _fp32(self.part(self.count - 1).residual_scale())).tolist()

    def _partial_sums(self, indices: Tensor) -> Iterator[Tensor]:
        total_ND = torch.zeros((), dtype=torch.float32, device=indices.device)
        for q, (indices_N, scale_D) in enumerate(zip(indices.unbind(dim=1), self._scales(indices), strict=False)):
            total_ND = total_ND + self.part(q).lookup(indices_N) * scale_D
            yield total_ND

    def _scales(self, beside: Tensor) -> tuple[Tensor, ...]:
        """The scale (D,) of each level."""
        return constant([s for scale in self.scales for s in scale], beside, torch.float32).chunk(self.count)

    def _kept_levels(self, device: torch.device) -> Tensor | None:
        """1 for levels that are decoded in this pass, 0 for the others; None: all levels."""
        if not self.training or self.quantizer_dropout == 0:
            return None
        depth = torch.randint(1, self.count + 1, (), device=device)
        drop = torch.rand((), dtype=torch.float32, device=device) < self.quantizer_dropout
        return ((torch.arange(self.count, device=device) < depth) | ~drop).float()


@final
class GroupedQuantizer(CompositeQuantizer):
    """G groups of consecutive channels, each with its own code; indices (B, *spatial, G).

    Source: product quantization (Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search"); with one
    codebook for all groups it is known as multi-head quantization.

    >>> pq = GroupedQuantizer([VectorQuantizer(256, 16) for _ in range(4)])
    >>> quantized, loss, indices = pq(torch.randn(1, 64, 8, 8))  # (1, 64, 8, 8), (), (1, 8, 8, 4)
    """

    @checked
    def __init__(self, quantizers: Sequence[PointwiseQuantizer], *, num_groups: int | None = None):
        """
        Args:
            quantizers: one per group, or a single one that all groups share (heads). The channels of the latent are
                those of all groups together.
            num_groups: number of groups G; None: as many as quantizers.
        """
        super().__init__(quantizers, num_groups, "num_groups")
        self.embedding_dim, self.num_groups = self.count * quantizers[0].embedding_dim, self.count

    def project(self, z_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Project each group as its quantizer does."""
        return torch.cat([self.part(g).project(z) for g, z in enumerate(self._split(z_ND))], dim=1)

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, "n q *code"]:
        """Search each group independently. 各组独立搜索。"""
        return torch.stack([self.part(g).search(u) for g, u in enumerate(self._split(u_ND))], dim=1)

    def lookup(self, indices: Int64[Tensor, "n q *code"]) -> Float[Tensor, "n d"]:
        """The codes of all groups, concatenated."""
        return torch.cat([self.part(g).lookup(group) for g, group in enumerate(indices.unbind(dim=1))], dim=1)

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Quantize each group; terms are means over groups. 各组分别量化；损失项对各组取平均。"""
        groups = [self.part(g).quantize(u) for g, u in enumerate(self._split(u_ND))]
        return QuantizedVectors(
            torch.stack([group.indices for group in groups], dim=1),
            torch.cat([group.codes for group in groups], dim=1),
            average_terms(group.distances for group in groups),
            average_terms(group.entropies for group in groups),
        )

    def estimate(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The gradient estimator of each group's quantizer."""
        pairs = zip(self._split(u_ND), self._split(codes_ND), strict=True)
        return torch.cat([self.part(g).estimate(u, codes) for g, (u, codes) in enumerate(pairs)], dim=1)

    def vectors(self, u_ND: Float[Tensor, "n d"], indices: Int64[Tensor, "n q *code"]) -> list[Float[Tensor, "n _"]]:
        """The channels of each group."""
        return self._split(u_ND)

    def accepts(self, code_shape: tuple[int, ...]) -> bool:
        """Exactly G groups."""
        return len(code_shape) > 0 and code_shape[0] == self.count and self.part(0).accepts(code_shape[1:])

    def residual_scale(self) -> list[float]:
        """The scales of all groups, concatenated."""
        return [scale for g in range(self.count) for scale in self.part(g).residual_scale()]

    def _split(self, x_ND: Tensor) -> list[Tensor]:
        return list(x_ND.split(self.part(0).embedding_dim, dim=1))


def _in_batch_order(parts: Sequence[Tensor]) -> Tensor:
    """The vectors of all parts (N * Q, D), ordered by latent vector.

    Concatenated over several processes they are then in the same order as in a single process.
    """
    return torch.stack(list(parts), dim=1).flatten(0, 1)


def _fp32(values: list[float]) -> Tensor:
    """As fp32 on the CPU, even if the model is built on the meta device."""
    return torch.tensor(values, dtype=torch.float32, device="cpu")
