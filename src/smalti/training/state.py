"""The state that a step changes, and its update: clipping, optimizer, averaged weights; none if a number is not finite.

一步所改变的状态及其更新：裁剪、优化器、平均权重；若有数值非有限，则什么也不改变。
"""

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
    """Everything that a step changes, except random states: the content of a checkpoint."""

    model: Model
    """The trained model. The quantizer of a tokenizer may also update its codebook in each training pass."""
    averaged: AveragedModel[Model]
    """The averaged weights, which the run delivers."""
    optimizer: torch.optim.Optimizer
    """AdamW, with its two moving averages per weight."""
    scaler: torch.amp.GradScaler
    """Loss scaler for fp16; switched off for other number formats."""
    check: FiniteCheck
    """Checks whether the numbers of a step are finite."""
    step: int = 0
    """Completed steps; also the number of the next batch, that is the position in the data."""
    skipped: int = 0
    """Number of these steps that skipped their batch."""
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Further trained networks that are not delivered, by name: a discriminator."""
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    """Their optimizers, by name."""

    def clip_gradients(self, config: OptimizationConfig, parts: Sequence[Part]) -> Float[Tensor, ""]:
        """Clip the gradient norm of all weights to `grad_clip`; return the norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = nn.utils.clip_grad_norm_(trainable, config.grad_clip)
        if hasattr(norm, "full_tensor"):  # sharded weights, see `fully_sharded.py`
            norm = norm.full_tensor()
        # An overflow at a large scale is not an error: the weights do not change, and the scaler halves the scale.
        overflow = ~norm.isfinite() & (self._scale() > 1)
        seen = norm.masked_fill(overflow, 0)
        self.check.see({"gradient norm": seen}, seen.reshape(1), [x for part in parts for x in part.sources])
        return norm

    def update(self, lr: float, grad_norm: Float[Tensor, ""]) -> None:
        """One optimizer step; then update the averaged weights and copy codebook and buffers.

        If a number of this step is not finite, everything is as before the step: weights, moments, averaged weights,
        codebook, buffers and the fp16 scale. If fp16 overflowed, only weights and moments are.

        一次优化器更新，再更新平均权重；若有数值非有限，则一切恢复到本步之前。
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
        """The steps since the last look that changed nothing because of a non-finite number; empty between looks.

        Args:
            config: number of steps, and the action for such a step.
            every: steps between looks where a look waits for the device; the last step always has one.

        Raises:
            NonFiniteLossError: there is such a step and the action is "stop"; the state is that before this step.
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
        """The factor of the loss scaler, on the device; 1 if it is switched off."""
        return self.scaler.scale(torch.ones_like(self.check.bad))


@dataclass(frozen=True)
class SkippedStep:
    """A step that changed nothing, as its loss or gradient was not finite and the action is "skip"."""

    step: int
    """Number of the step, from 1."""
    reason: str
    """Term, step and files."""


def start_state(model: Model, config: OptimizationConfig, runtime: Runtime) -> TrainingState[Model]:
    """The state before the first step: the model on its device, its averaged copy, a new optimizer."""
    runtime.prepare(model)
    average = AveragedModel(model, config.ema_decay)
    check = FiniteCheck(runtime.device, last=config.on_non_finite == "stop")
    return TrainingState(model, average, build_optimizer(model, config), runtime.scaler(), check)
