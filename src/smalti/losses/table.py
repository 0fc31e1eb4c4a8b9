"""The one place where loss terms are weighted.

Layers return named, unweighted terms: the quantizer its own (`output.quantizer_output.terms`), this room those that
compare a reconstruction with its image. A `LossTable` is the table of weights of the training config; calling it gives
the total and every term by name, so that a log shows what was minimised and nothing is weighted twice.

Some terms need a pretrained network. `build_network_losses` builds those that a table of weights names, once, and the
`LossTable` receives them built. They belong to no model, so no checkpoint holds them and no optimizer moves them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from smalti.blocks import HEDVGG16, VGG16, EfficientNetLite0, FeatureNetwork
from smalti.losses.ms_ssim import ms_ssim
from smalti.losses.perceptual import LPIPS, FeatureDistance, PerceptualDistance
from smalti.losses.reconstruction import charbonnier, l1, l2
from smalti.quantizers import QuantizerOutput

RECONSTRUCTION_LOSSES = {"l1": l1, "l2": l2, "charbonnier": charbonnier, "ms_ssim": ms_ssim}
"""Every loss of a reconstruction against its image that needs no network, by the name it has in a config."""

NETWORK_LOSSES: dict[str, tuple[type[LPIPS] | type[FeatureDistance], type[FeatureNetwork]]] = {
    "lpips": (LPIPS, VGG16),
    "efficientnet_lite0": (FeatureDistance, EfficientNetLite0),
    "hed_vgg16": (FeatureDistance, HEDVGG16),
}
"""Every loss that needs a pretrained network, by the name it has in a config: which distance, on which network."""

ADVERSARIAL_TERMS = ("adversarial", "r1", "lecam")
"""Terms of the adversarial phase, which need a discriminator and are added by whoever trains it: `adversarial` to the
tokenizer's loss, the other two to the discriminator's."""


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
    weights: dict[str, float | Tensor]
    """The weight that each of the terms was taken with; a scalar on the device where it was measured there."""

    def plus(self, name: str, term: Float[Tensor, ""], weight: float | Float[Tensor, ""]) -> "LossResult":
        """The same with one more term in it."""
        assert name not in self.terms, f"{name} is in the loss already"
        total = self.total + weight * term
        return LossResult(total, {**self.terms, name: term}, {**self.weights, name: weight})


def check_weights(weights: Mapping[str, float | int]) -> None:
    """Refuse a table of weights that cannot be meant, before any network is loaded.

    Raises:
        ValueError: a weight that is not finite, a negative weight of a term that is not the quantizer's, or a weight of
            a discriminator's term without a discriminator.
    """
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise ValueError(f"loss weight {name}: got {weight}, expected a finite number")
        if name in (*RECONSTRUCTION_LOSSES, *NETWORK_LOSSES, *ADVERSARIAL_TERMS) and weight < 0:
            raise ValueError(f"loss weight {name}: got {weight}, expected a number >= 0")
        if name in ("r1", "lecam") and weight != 0 and not weights.get("adversarial"):
            raise ValueError(f"loss weight {name}: got none of adversarial beside it, there is no discriminator")


def build_network_losses(
    weights: Mapping[str, float | int], path: str | Path | None = None, *, download: bool = False
) -> dict[str, PerceptualDistance]:
    """The losses of `NETWORK_LOSSES` to which a table gives a weight other than 0, with their published weights.

    Args:
        weights: the table of weights.
        path: a folder to look for the files in first; default: only the usual places, see `find_weights`.
        download: fetch files that are nowhere.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: as `smalti.formats.find_weights` says.
    """
    named = {name: NETWORK_LOSSES[name] for name in NETWORK_LOSSES if weights.get(name, 0) != 0}
    return {name: distance.load(kind, path, download=download) for name, (distance, kind) in named.items()}


def refuse_training_network(judge: str, weights: Mapping[str, float | int]) -> None:
    """Refuse a judge that a tokenizer was trained to please.

    Args:
        judge: the `name` of the network that is about to evaluate, as in `FeatureNetwork.name`.
        weights: the table of weights that the tokenizer was trained with (`loss_weights` in RUN/train.yaml).

    Raises:
        ValueError: one of the table's losses was computed on that network.
    """
    for name, (_, kind) in NETWORK_LOSSES.items():
        if weights.get(name, 0) != 0 and kind.name == judge:
            raise ValueError(
                f"network: got {judge}, on which this tokenizer was trained (loss weight {name}: {weights[name]}), "
                "expected another network: a network finds what was trained to please it better than it is"
            )


class LossTable:
    """Weights by name: those of `RECONSTRUCTION_LOSSES`, `NETWORK_LOSSES` and `ADVERSARIAL_TERMS`, and any term of the
    quantizer whose weight should differ.

    A term that compares with the image is computed if, and only if, the table gives it a weight other than 0. A
    quantizer's term takes the table's weight if it is named there, else the quantizer's own.

    >>> table = LossTable({"l1": 1.0, "ms_ssim": 0.5})
    """

    def __init__(
        self, weights: Mapping[str, float | int], network_losses: Mapping[str, PerceptualDistance] | None = None
    ) -> None:
        """Take the weights, and the losses that need a network.

        Args:
            weights: the weight of each term by name.
            network_losses: from `build_network_losses(weights)`, on the device of the images.

        Raises:
            ValueError: as `check_weights` says, or a weight of a network's loss that was not given.
        """
        check_weights(weights)
        self.weights = {name: float(weight) for name, weight in weights.items()}
        built = network_losses or {}
        for name in NETWORK_LOSSES:
            if self.weights.get(name, 0.0) != 0 and name not in built:
                raise ValueError(f"loss weight {name}: got {weights[name]}, expected its network in network_losses")
        self._losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {**RECONSTRUCTION_LOSSES, **built}

    def weight(self, name: str) -> float:
        """The weight of a loss that is not the quantizer's; 0 if the table does not name it."""
        return self.weights.get(name, 0.0)

    def __call__(self, image: Float[Tensor, "b c h w"], output: ReconstructionOutput) -> LossResult:
        """Compute and weight every term but the adversarial ones.

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
            name: loss(output.reconstruction, image) for name, loss in self._losses.items() if self.weight(name) != 0
        }
        weights: dict[str, float | Tensor] = {name: self.weights[name] for name in terms}
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
        own = (*RECONSTRUCTION_LOSSES, *NETWORK_LOSSES, *ADVERSARIAL_TERMS)
        shared = {*own} & quantizer.terms.keys()
        assert not shared, f"a quantizer's term must not be called {shared}"
        allowed = [*own, *quantizer.terms]
        unknown = [name for name in self.weights if name not in allowed]
        if unknown:
            raise ValueError(f"loss weight: got the name {unknown[0]!r}, expected one of {', '.join(allowed)}")
