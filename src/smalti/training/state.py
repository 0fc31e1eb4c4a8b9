"""What a step changes, and how: clipping, the optimizer, the average; or nothing, where a number is not finite."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.models import SavedModel
from smalti.training.accumulation import Part
from smalti.training.finite_check import FiniteCheck, NonFiniteLossError
from smalti.training.optimization import AveragedModel, OptimizationConfig, build_optimizer, step_unless
from smalti.training.runtime import Runtime

Model = TypeVar("Model", bound=SavedModel)


@dataclass
class TrainingState(Generic[Model]):
    """All that a step changes, apart from random states: what a checkpoint has to hold."""

    model: Model
    """The weights that gradients move. A tokenizer's quantizer also moves its codebook in each training pass."""
    averaged: AveragedModel[Model]
    """The moving average of those weights: what the run delivers."""
    optimizer: torch.optim.Optimizer
    """AdamW with its two moving averages for each weight."""
    scaler: torch.amp.GradScaler
    """Scale of the loss in fp16; switched off for other number formats."""
    check: FiniteCheck
    """Sees whether the numbers of a step are finite."""
    step: int = 0
    """Completed steps; also the number of the next batch, so it is the position in the data."""
    skipped: int = 0
    """How many of these steps skipped their batch."""
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Further networks that learn but are not delivered, by name; a discriminator."""
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    """Their optimizers, by name."""

    def clip_gradients(self, config: OptimizationConfig, parts: Sequence[Part]) -> Float[Tensor, ""]:
        """Shorten the gradient of all weights together to `grad_clip`, and return the norm that it had."""
        self.scaler.unscale_(self.optimizer)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = nn.utils.clip_grad_norm_(trainable, config.grad_clip)
        if hasattr(norm, "full_tensor"):  # of weights in parts, see `fully_sharded.py`
            norm = norm.full_tensor()
        # An overflow under a large scale is no failure: the weights stay, and the scaler halves the scale.
        overflow = ~norm.isfinite() & (self._scale() > 1)
        seen = norm.masked_fill(overflow, 0)
        self.check.see({"gradient norm": seen}, seen.reshape(1), [x for part in parts for x in part.sources])
        return norm

    def update(self, lr: float, grad_norm: Float[Tensor, ""]) -> None:
        """One step of the optimizer; the average follows the new weights, codebook and buffers are copied.

        Where a number of this step is not finite, all of that is taken back: weights, moments, average, codebook,
        buffers and the scale of fp16 are those before the step. Where fp16 overflowed, weights and moments are.
        """
        bad, scale = self.check.bad, self._scale()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        step_unless(self.optimizer, torch.maximum(bad, (~grad_norm.isfinite()).to(bad)))
        self.scaler.update()
        if self.scaler.is_enabled():
            self.scaler.update(torch.where(bad > 0, scale, self._scale()))
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.averaged.update(self.model, self.step, bad)

    def look(self, config: OptimizationConfig, every: int) -> "list[SkippedStep]":
        """The steps that changed nothing because a number was not finite, where it is time to look for them.

        Args:
            config: number of steps, and what to do about such a step.
            every: steps between two looks, where looking means waiting; after the last step there always is one.

        Raises:
            NonFiniteLossError: there is such a step, and the config says stop; the state is that before it.
        """
        if not (self.check.due(every) or self.step == config.steps):
            return []
        skipped = [SkippedStep(step, reason) for step, reason in self.check.look().items()]
        if skipped and config.on_non_finite == "stop":
            self.step = skipped[0].step - 1
            raise NonFiniteLossError(skipped[0].reason)
        self.skipped += len(skipped)
        return skipped

    def _scale(self) -> Float[Tensor, ""]:
        """What the scaler multiplies losses with, on the device; 1 where it is switched off."""
        return self.scaler.scale(torch.ones_like(self.check.bad))


@dataclass(frozen=True)
class SkippedStep:
    """A step that changed nothing, because its loss or gradient was not finite and the config says skip."""

    step: int
    """Number of the step, from 1."""
    reason: str
    """Which term, which step, which files."""


def start_state(model: Model, config: OptimizationConfig, runtime: Runtime) -> TrainingState[Model]:
    """The state before the first step: the model on its device, its copy to average into, a fresh optimizer."""
    runtime.prepare(model)
    average = AveragedModel(model, config.ema_decay)
    check = FiniteCheck(runtime.device, last=config.on_non_finite == "stop")
    return TrainingState(model, average, build_optimizer(model, config), runtime.scaler(), check)
