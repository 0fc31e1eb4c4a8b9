"""Codebook usage over a whole set of images, per scale, and the detection of codebook collapse.

Usage over one batch grows with the batch size, so published numbers are rarely comparable. Here the code counts are
summed over the whole set before usage is computed, so the batch size has no effect. The counting and the formulas are
in `smalti.ops.usage`; this file adds the accumulation over batches and the scales.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from smalti.checks import at_least
from smalti.ops import UsageStatistics, count_codes, usage_statistics
from smalti.quantizers.latents import check_indices


@dataclass(frozen=True)
class CodeUsageResult:
    """Usage of each scale and of all scales together."""

    vocab_size: int
    """Number of codes."""
    total: UsageStatistics
    """Usage over the tokens of all scales. If scales have separate codebooks, equal indices count as one code."""
    scales: tuple[UsageStatistics, ...]
    """Usage over the tokens of each scale, coarse to fine."""
    grids: tuple[tuple[int, ...], ...]
    """Largest token grid at each scale; all grids are equal if all images have one size."""

    def collapse(self, min_usage: float) -> tuple[str, ...]:
        """Reasons why the codebook counts as collapsed, one sentence each; empty if it does not.

        It counts as collapsed if a scale with more than one position used a single code over the whole set, or if less
        than `min_usage` of the reachable codes were used. Reachable are min(vocab_size, tokens) codes, because fewer
        tokens than codes cannot use all codes.

        Args:
            min_usage: smallest acceptable fraction, 0 (never report) to 1.
        """
        reasons = [
            f"scale {k} ({'x'.join(map(str, grid))}) used a single code for all its {scale.tokens} tokens"
            for k, (grid, scale) in enumerate(zip(self.grids, self.scales, strict=True))
            if scale.used_codes == 1 and math.prod(grid) > 1
        ]
        reachable = min(self.vocab_size, self.total.tokens)
        if self.total.used_codes < min_usage * reachable:
            reasons.append(
                f"{self.total.used_codes} of {reachable} possible codes were used, less than {min_usage:.0%}"
            )
        return tuple(reasons)


class CodeUsage:
    """Counts codes over a set of images: `update` with the indices of batches of any size, then `compute`."""

    def __init__(self, vocab_size: int, num_scales: int = 1) -> None:
        """Start with zero counts.

        Args:
            vocab_size: number of codes; indices are in [0, vocab_size).
            num_scales: number of token maps per image; 1 for a tokenizer with a single scale.
        """
        at_least(1, vocab_size=vocab_size, num_scales=num_scales)
        self.vocab_size = vocab_size
        self._counts = torch.zeros(num_scales, vocab_size, dtype=torch.int64)
        self._grids: list[tuple[int, ...]] = [() for _ in range(num_scales)]

    def update(self, indices: Int64[Tensor, "b ..."] | Sequence[Int64[Tensor, "b ..."]]) -> None:
        """Add a batch.

        Args:
            indices: (B, *grid) int64 per scale, coarse to fine; a single scale may be given as a tensor.

        Raises:
            ValueError: wrong number of scales, or an index outside [0, vocab_size).
        """
        scales = (indices,) if isinstance(indices, Tensor) else tuple(indices)
        if len(scales) != len(self._grids):
            raise ValueError(f"indices: got {len(scales)} scales, expected {len(self._grids)}")
        for k, scale in enumerate(scales):
            check_indices(scale, self.vocab_size, name=f"indices of scale {k}")
        for k, scale in enumerate(scales):
            self._counts[k] += count_codes(scale, self.vocab_size).cpu()
            self._grids[k] = max(self._grids[k], tuple(scale.shape[1:]), key=_positions)

    def compute(self) -> CodeUsageResult:
        """Usage, perplexity and entropy of all tokens counted so far.

        Raises:
            ValueError: nothing was counted.
        """
        if not self._counts.any():
            raise ValueError("indices: got no tokens, expected at least one update")
        return CodeUsageResult(
            vocab_size=self.vocab_size,
            total=usage_statistics(self._counts.sum(dim=0)),
            scales=tuple(usage_statistics(counts) for counts in self._counts),
            grids=tuple(self._grids),
        )


def _positions(grid: tuple[int, ...]) -> int:
    return math.prod(grid) if grid else 0
