"""The table of loss weights, the only place where loss terms are weighted.

All terms are named and unweighted: the quantizer returns its own (`output.quantizer_output.terms`), this package
computes those that compare a reconstruction with its image. A `LossTable` holds the weights of the training config. It
returns the total and every term by name, so a log shows the loss that was minimised, and nothing is weighted twice.

Some terms need a pretrained network. `build_network_losses` builds these once and passes them to the `LossTable`. They
are not part of any model, so checkpoints do not contain them and optimizers do not change them.

损失权重表：唯一给损失项加权的地方。所有损失项都有名称且未加权：量化器返回自己的项，本包计算比较重建与图像的项。
`LossTable` 保存训练配置中的权重，返回总损失以及每一项，因此日志显示实际最小化的损失，且没有任何一项被加权两次。需要
预训练网络的项由 `build_network_losses` 构建一次；这些网络不属于任何模型，不进入检查点，也不被优化器改变。
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
"""Losses between reconstruction and image that need no network, by their names in a config."""

NETWORK_LOSSES: dict[str, tuple[type[LPIPS] | type[FeatureDistance], type[FeatureNetwork]]] = {
    "lpips": (LPIPS, VGG16),
    "efficientnet_lite0": (FeatureDistance, EfficientNetLite0),
    "hed_vgg16": (FeatureDistance, HEDVGG16),
}
"""Losses that need a pretrained network, by their names in a config: distance and network."""

ADVERSARIAL_TERMS = ("adversarial", "r1", "lecam")
"""Terms of adversarial training. They need a discriminator and are added by the training loop: `adversarial` to the
tokenizer's loss, the other two to the discriminator's."""


@runtime_checkable
class ReconstructionOutput(Protocol):
    """The part of a tokenizer's output that a `LossTable` needs; `smalti.tokenizers.TokenizerOutput` provides it."""

    @property
    def reconstruction(self) -> Tensor:
        """The reconstruction (B, C, H, W), same size as the image."""

    @property
    def quantizer_output(self) -> QuantizerOutput:
        """The quantizer's result, with its unweighted loss terms and their default weights."""


@dataclass(frozen=True)
class LossResult:
    """A total loss and its terms: total == sum(weights[name] * terms[name])."""

    total: Float[Tensor, ""]
    """The loss to minimise."""
    terms: dict[str, Tensor]
    """Every computed term, unweighted: a scalar with gradient."""
    weights: dict[str, float | Tensor]
    """The weight that each of the terms was taken with; a scalar on the device where it was measured there."""

    def plus(self, name: str, term: Float[Tensor, ""], weight: float | Float[Tensor, ""]) -> "LossResult":
        """A copy with one more term."""
        assert name not in self.terms, f"{name} is in the loss already"
        total = self.total + weight * term
        return LossResult(total, {**self.terms, name: term}, {**self.weights, name: weight})


def check_weights(weights: Mapping[str, float | int]) -> None:
    """Refuse an invalid table of weights, before any network is loaded.

    Raises:
        ValueError: a weight that is not finite, a negative weight for a term that is not the quantizer's, or a weight
            for a discriminator's term without a discriminator.
    """
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise ValueError(f"loss weight {name}: got {weight}, expected a finite number")
        if name in (*RECONSTRUCTION_LOSSES, *NETWORK_LOSSES, *ADVERSARIAL_TERMS) and weight < 0:
            raise ValueError(f"loss weight {name}: got {weight}, expected a number of at least 0")
        if name in ("r1", "lecam") and weight != 0 and not weights.get("adversarial"):
            raise ValueError(f"loss weight {name}: got no weight for adversarial, expected one")


def build_network_losses(
    weights: Mapping[str, float | int], path: str | Path | None = None, *, download: bool = False
) -> dict[str, PerceptualDistance]:
    """Build the `NETWORK_LOSSES` whose loss weight is not 0, with the published weights of their networks.

    Args:
        weights: the table of loss weights.
        path: a folder to search first for the files. Default: only the usual places, see `find_weights`.
        download: download missing files.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: as for `smalti.formats.find_weights`.
    """
    named = {name: NETWORK_LOSSES[name] for name in NETWORK_LOSSES if weights.get(name, 0) != 0}
    return {name: distance.load(kind, path, download=download) for name, (distance, kind) in named.items()}


def refuse_training_network(judge: str, weights: Mapping[str, float | int]) -> None:
    """Refuse to evaluate a tokenizer on a network that its training loss used.

    Args:
        judge: `FeatureNetwork.name` of the network for the evaluation.
        weights: the loss weights of the tokenizer's training (`loss_weights` in RUN/train.yaml).

    Raises:
        ValueError: one of the table's losses was computed on that network.
    """
    for name, (_, kind) in NETWORK_LOSSES.items():
        if weights.get(name, 0) != 0 and kind.name == judge:
            raise ValueError(
                f"network: got {judge}, on which this tokenizer was trained (loss weight {name}: {weights[name]}), "
                "expected another network, because the score on this one would be too good"
            )


class LossTable:
    """Weights by name, for `RECONSTRUCTION_LOSSES`, `NETWORK_LOSSES`, `ADVERSARIAL_TERMS`, and for terms of the
    quantizer whose default weight should change.

    A reconstruction or network loss is computed only if its weight is not 0. A quantizer's term uses the table's weight
    if there is one, else the quantizer's default.

    >>> table = LossTable({"l1": 1.0, "ms_ssim": 0.5})
    """

    def __init__(
        self, weights: Mapping[str, float | int], network_losses: Mapping[str, PerceptualDistance] | None = None
    ) -> None:
        """Store the weights and the losses that need a network.

        Args:
            weights: weight of each term by name.
            network_losses: from `build_network_losses(weights)`, on the device of the images.

        Raises:
            ValueError: as for `check_weights`, or a network loss has a weight but was not given.
        """
        check_weights(weights)
        self.weights = {name: float(weight) for name, weight in weights.items()}
        built = network_losses or {}
        for name in self._named_networks():
            if name not in built:
                raise ValueError(f"loss weight {name}: got {weights[name]}, expected its network in network_losses")
        self._losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {**RECONSTRUCTION_LOSSES, **built}

    def weight(self, name: str) -> float:
        """Weight of a loss that is not the quantizer's; 0 if it is not in the table."""
        return self.weights.get(name, 0.0)

    def __call__(self, image: Float[Tensor, "b c h w"], output: ReconstructionOutput) -> LossResult:
        """Compute and weight every term but the adversarial ones.

        Args:
            image: the original (B, C, H, W) in [-1, 1].
            output: the tokenizer's output for it.

        Raises:
            ValueError: the table has an unknown term, or every weight is 0.
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
            raise ValueError(f"loss weights: got {self.weights}, expected at least one weight other than 0")
        total = torch.stack([weights[name] * term for name, term in terms.items() if weights[name] != 0]).sum()
        return LossResult(total=total, terms=terms, weights=weights)

    def feature_distance(
        self, reconstruction: Float[Tensor, "b c h w"], image: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, ""] | None:
        """Weighted sum of the losses on pretrained networks (`NETWORK_LOSSES`); None if the table has none."""
        distances = [self.weights[name] * self._losses[name](reconstruction, image) for name in self._named_networks()]
        return torch.stack(distances).sum() if distances else None

    def _named_networks(self) -> list[str]:
        return [name for name in NETWORK_LOSSES if self.weight(name) != 0]

    def _check_names(self, quantizer: QuantizerOutput) -> None:
        own = (*RECONSTRUCTION_LOSSES, *NETWORK_LOSSES, *ADVERSARIAL_TERMS)
        shared = {*own} & quantizer.terms.keys()
        assert not shared, f"a quantizer's term must not be called {shared}"
        allowed = [*own, *quantizer.terms]
        unknown = [name for name in self.weights if name not in allowed]
        if unknown:
            raise ValueError(f"loss weight: got the name {unknown[0]!r}, expected one of {', '.join(allowed)}")
