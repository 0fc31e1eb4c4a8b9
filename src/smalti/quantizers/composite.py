"""What quantizers made of several share: one code per part, each part with its own codebook or all with one.

The leaves differ in what a part is: a level that refines what the levels before left over (`residual.py`), or a group
of channels (`grouped.py`).

Legend: N vectors, D components, Q parts.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from smalti.quantizers.rows import RowQuantizer


class CompositeQuantizer(RowQuantizer):
    """Several quantizers whose codes together make one vector; indices are (…, Q)."""

    def __init__(self, quantizers: Sequence[RowQuantizer], count: int | None, what: str):
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
                f"quantizers: got {len(quantizers)} for {what} = {count}, expected one for each or a single shared one"
            )
        parts = [id(module) for quantizer in quantizers for module in quantizer.modules()]
        if len(set(parts)) < len(parts):
            raise ValueError(f"quantizers: one object came twice; to share it, pass it once with {what}={count}")
        first = quantizers[0]
        for quantizer in quantizers:
            for name in ("num_embeddings", "embedding_dim", "code_shape", "soft"):
                if getattr(quantizer, name) != getattr(first, name):
                    raise ValueError(
                        f"quantizers: {name} is {getattr(first, name)} in one and {getattr(quantizer, name)} in "
                        "another, expected the same in all"
                    )
            if quantizer.weights() != first.weights():
                raise ValueError(f"quantizers: loss weights {first.weights()} and {quantizer.weights()} differ")
        self.quantizers = nn.ModuleList(quantizers)
        self.count, self.num_embeddings, self.soft = count, first.num_embeddings, first.soft
        self.code_shape = (count, *first.code_shape)

    def part(self, q: int) -> RowQuantizer:
        """The quantizer of part q."""
        quantizer = self.quantizers[q if len(self.quantizers) > 1 else 0]
        assert isinstance(quantizer, RowQuantizer)
        return quantizer

    @abstractmethod
    def vectors(
        self, u_ND: Float[Tensor, "n d"], indices: Int64[Tensor, "n q *code"]
    ) -> Iterable[Float[Tensor, "n _"]]:
        """What each part got to quantize, when `indices` are what they chose."""

    @property
    def initialising(self) -> bool:
        """Whether any part is."""
        return any(self.part(q).initialising for q in range(len(self.quantizers)))

    @torch.no_grad()
    def initialise(self, u_ND: Float[Tensor, "n d"]) -> None:
        """Start each codebook from the vectors of all parts that use it; first parts first, later ones see them."""
        for q, quantizer in enumerate(self.quantizers):
            vectors = list(self.vectors(u_ND, self.search(u_ND)))
            assert isinstance(quantizer, RowQuantizer)
            quantizer.initialise(vectors[q] if len(self.quantizers) > 1 else _in_batch_order(vectors))

    @torch.no_grad()
    def learn(self, u_ND: Float[Tensor, "n d"], indices: Int64[Tensor, "n q *code"]) -> None:
        """Let each codebook learn once, from all parts that use it."""
        vectors, chosen = list(self.vectors(u_ND, indices)), indices.unbind(dim=1)
        if len(self.quantizers) == 1:
            vectors, chosen = [_in_batch_order(vectors)], (indices.flatten(0, 1),)
        for q, (vectors_ND, indices_N) in enumerate(zip(vectors, chosen, strict=True)):
            self.part(q).learn(vectors_ND, indices_N)

    def make_symmetric(self) -> None:
        """See `RowQuantizer.make_symmetric`: all parts."""
        for q in range(len(self.quantizers)):
            self.part(q).make_symmetric()

    def weights(self) -> dict[str, float]:
        """Those of the parts; terms are means over parts."""
        return self.part(0).weights()

    def get_codebook(self) -> Float[Tensor, "*parts k d"]:
        """One table per part: (Q, num_embeddings, embedding_dim of a part)."""
        return torch.stack([self.part(q).get_codebook() for q in range(self.count)])

    def code_counts(self) -> list[Int64[Tensor, " k"]] | None:
        """Those of the parts; parts that share a codebook share its count."""
        counts = [self.part(q).code_counts() for q in range(self.count)]
        kept = [of_part for of_part in counts if of_part is not None]
        return [count for of_part in kept for count in of_part] if len(kept) == len(counts) else None

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`."""
        return {
            "type": type(self).__name__,
            "quantizers": [self.part(q).config() for q in range(len(self.quantizers))],
        }


def _in_batch_order(parts: Sequence[Tensor]) -> Tensor:
    """The vectors of all parts (N * Q, D), those of one latent vector beside each other.

    Then the rows of several processes, one process after the other, are in the order in which one would have them.
    """
    return torch.stack(list(parts), dim=1).flatten(0, 1)
