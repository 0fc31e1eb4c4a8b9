"""Averaged weights: a second copy of the model that follows the trained one slowly and is better than it.

Source: Polyak and Juditsky 1992; the exponential form with a decay that rises, min(decay, (1 + t) / (10 + t)), as in
TensorFlow's ExponentialMovingAverage. The average is what a run saves; the trained weights live on in checkpoints.
"""

import copy
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.quantizers.vector import Codebook

Model = TypeVar("Model", bound=nn.Module)
Pairs = tuple[list[Tensor], list[Tensor]]


class AveragedModel(Generic[Model]):
    """A copy of a model whose weights are exponential moving averages of the original's.

    Codebooks (`smalti.quantizers.vector.Codebook`, which says why) and buffers are copied, not averaged. Nor would
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
        (averages, weights), (copies, tensors) = self._pairs(model)
        if bad is not None:
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight, (new_weight * (1 - bad)).to(average.dtype))
        elif averages:
            torch._foreach_lerp_(averages, weights, new_weight)
        if copies and bad is not None:
            torch._foreach_copy_(tensors, [torch.where(bad > 0, a, b) for a, b in zip(copies, tensors, strict=True)])
        if copies:
            torch._foreach_copy_(copies, tensors)

    def _pairs(self, model: Model) -> tuple[Pairs, Pairs]:
        """The tensors that are averaged, and those that are copied: here and in `model`.

        As lists, so that one call takes them all: a few kernels on a GPU, not one for each of hundreds of tensors.
        """
        codebooks = {id(module.weight) for module in model.modules() if isinstance(module, Codebook)}
        averaged: Pairs = ([], [])
        copied: Pairs = (list(self.model.buffers()), list(model.buffers()))
        for average, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
            kind = averaged if parameter.requires_grad and id(parameter) not in codebooks else copied
            kind[0].append(average)
            kind[1].append(parameter)
        return averaged, copied

    def state_dict(self) -> dict[str, Any]:
        """Weights and buffers of the averaged copy."""
        return self.model.state_dict()
