"""Averaged weights: a second copy of the model that follows the trained one slowly and is better than it.

Source: Polyak and Juditsky 1992; the exponential form with a decay that rises, min(decay, (1 + t) / (10 + t)), as in
TensorFlow's ExponentialMovingAverage. The average is what a run saves; the trained weights live on in checkpoints.
"""

import copy
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.quantizers.tables import Codebook

Model = TypeVar("Model", bound=nn.Module)


class AveragedModel(Generic[Model]):
    """A copy of a model whose weights are exponential moving averages of the original's.

    Codebooks (`smalti.quantizers.tables.Codebook`, which says why) and buffers are copied, not averaged. Nor would
    there be noise to remove: a moving-average codebook is an average over batches already, and its counts and sums fit
    no other codebook. What remains is that the averaged encoder lags behind the codebook; as the learning rate falls,
    so does the lag. Every other table of vectors, such as the words and classes of a prior, is averaged.
    """

    def __init__(self, model: Model, decay: float):
        """Start from a copy of `model`.

        Args:
            model: what to follow; it stays untouched.
            decay: share of the average that a step keeps, 0 (always the last weights) to below 1.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay: got {decay}, expected at least 0 and below 1")
        self.decay = decay
        self.model: Model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: Model, step: int, bad: Float[Tensor, ""] | None = None) -> None:
        """Take in the weights of `model` after `step` (1, 2, ...) steps.

        Args:
            model: what to follow.
            step: completed steps.
            bad: where it is 1, the average stays, and `model` gets back what its forward passes since the last update
                may have moved: codebooks and buffers. None: nowhere.
        """
        new_weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for average, tensor, averaged in self._pairs(model):
            if averaged:
                average.lerp_(tensor, new_weight if bad is None else (new_weight * (1 - bad)).to(average.dtype))
                continue
            if bad is not None:
                tensor.copy_(torch.where(bad > 0, average, tensor))
            average.copy_(tensor)

    def _pairs(self, model: Model) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Every tensor here, its counterpart in `model`, and whether it is averaged or copied."""
        codebooks = {id(module.weight) for module in model.modules() if isinstance(module, Codebook)}
        for average, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
            yield average, parameter, parameter.requires_grad and id(parameter) not in codebooks
        for copied, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            yield copied, buffer, False

    def state_dict(self) -> dict[str, Any]:
        """Weights and buffers of the averaged copy."""
        return self.model.state_dict()
