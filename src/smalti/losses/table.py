"""The one place where loss terms are weighted.

Layers return named, unweighted terms: the quantizer its own (`output.quantizer_output.terms`), this room those that
compare a reconstruction with its image. A `LossTable` is the table of weights of the training config; calling it gives
the total and every term by name, so that a log shows what was minimised and nothing is weighted twice.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from smalti.losses.ms_ssim import ms_ssim
from smalti.losses.reconstruction import charbonnier, l1, l2
from smalti.quantizers import QuantizerOutput

RECONSTRUCTION_LOSSES = {"l1": l1, "l2": l2, "charbonnier": charbonnier, "ms_ssim": ms_ssim}
"""Every loss of a reconstruction against its image, by the name it has in a config."""


@runtime_checkable
class ReconstructionOutput(Protocol):
    """What a `LossTable` needs of a tokenizer's output; `smalti.tokenizers.TokenizerOutput` has it."""

    @property
    def reconstruction(self) -> Tensor:
        """The reconstruction (B, C, H, W), as large as its image."""

    @property
    def quantizer_output(self) -> QuantizerOutput:
        """The quantizer's result, with its unweighted loss terms and their default weights."""


@dataclass(frozen=True)
class LossResult:
    """A total loss and what it is made of: total == sum(weights[name] * terms[name])."""

    total: Float[Tensor, ""]
    """What to minimise."""
    terms: dict[str, Tensor]
    """Every computed term, unweighted, a scalar that still carries its gradient."""
    weights: dict[str, float]
    """The weight that each of the terms was taken with."""


class LossTable:
    """Weights by name: those of `RECONSTRUCTION_LOSSES`, and any term of the quantizer whose weight should differ.

    A reconstruction loss is computed if, and only if, the table gives it a weight other than 0. A quantizer's term
    takes the table's weight if it is named there, else the quantizer's own.

    >>> table = LossTable({"l1": 1.0, "ms_ssim": 0.5})
    """

    def __init__(self, weights: Mapping[str, float | int]) -> None:
        """Take the weights.

        Raises:
            ValueError: a weight that is not finite, or a negative weight of a reconstruction loss.
        """
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"loss weight {name}: got {weight}, expected a finite number")
            if name in RECONSTRUCTION_LOSSES and weight < 0:
                raise ValueError(f"loss weight {name}: got {weight}, expected a number >= 0")
        self.weights = {name: float(weight) for name, weight in weights.items()}

    def __call__(self, image: Float[Tensor, "b c h w"], output: ReconstructionOutput) -> LossResult:
        """Compute and weight every term.

        Args:
            image: what was to be reconstructed, (B, C, H, W) in [-1, 1].
            output: what the tokenizer made of it.

        Raises:
            ValueError: the table names a term that neither this room nor the quantizer has, or nothing is left to
                minimise because every weight is 0.
        """
        quantizer = output.quantizer_output
        self._check_names(quantizer)
        terms = {
            name: loss(output.reconstruction, image)
            for name, loss in RECONSTRUCTION_LOSSES.items()
            if self.weights.get(name, 0.0) != 0
        }
        weights = {name: self.weights[name] for name in terms}
        for name, term in quantizer.terms.items():
            terms[name] = term
            weights[name] = float(self.weights.get(name, quantizer.weights[name]))
        if not any(weights.values()):
            raise ValueError(
                f"loss weights: got {self.weights}, expected a weight other than 0, there is nothing to minimise"
            )
        total = torch.stack([weights[name] * term for name, term in terms.items() if weights[name] != 0]).sum()
        return LossResult(total=total, terms=terms, weights=weights)

    def _check_names(self, quantizer: QuantizerOutput) -> None:
        shared = RECONSTRUCTION_LOSSES.keys() & quantizer.terms.keys()
        assert not shared, f"a quantizer's term must not be called {shared}"
        allowed = [*RECONSTRUCTION_LOSSES, *quantizer.terms]
        unknown = [name for name in self.weights if name not in allowed]
        if unknown:
            raise ValueError(f"loss weight: got the name {unknown[0]!r}, expected one of {', '.join(allowed)}")
