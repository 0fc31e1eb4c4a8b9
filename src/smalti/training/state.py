"""What a step changes, and how: clipping, the optimizer's move, the average; or nothing, where a batch is skipped.

Both loops stand on this, that of tokenizers (`loop.py`) and that of priors (`prior_loop.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import nn

from smalti.formats.saved_model import SavedModel
from smalti.training.accumulation import NonFiniteLossError, Part, refuse_non_finite
from smalti.training.adversarial import Adversary
from smalti.training.averaging import AveragedModel
from smalti.training.optimization import OptimizationConfig, build_optimizer
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
    step: int = 0
    """Completed steps; also the number of the next batch, so it is the position in the data."""
    skipped: int = 0
    """How many of these steps skipped their batch."""
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Further networks that learn but are not delivered, by name; a discriminator."""
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    """Their optimizers, by name."""
    adversary: Adversary | None = None
    """What trains the discriminator, whose weights are in `modules`; None: there is no adversarial phase."""

    def oppose(self, adversary: Adversary) -> None:
        """Train against a discriminator too."""
        self.adversary = adversary
        self.modules["adversary"], self.optimizers["adversary"] = adversary.modules, adversary.optimizer

    def clip_gradients(self, config: OptimizationConfig, parts: Sequence[Part]) -> float:
        """Shorten the gradient of all weights together to `grad_clip`, and return the norm that it had.

        Raises:
            NonFiniteLossError: the norm is NaN or infinite, and not because fp16 overflowed.
        """
        self.scaler.unscale_(self.optimizer)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = nn.utils.clip_grad_norm_(trainable, config.grad_clip)
        if hasattr(norm, "full_tensor"):  # of weights in parts, see `fully_sharded.py`
            norm = norm.full_tensor()
        # An overflow under a large scale is no failure: the scaler leaves the weights alone and halves the scale.
        if not (self.scaler.is_enabled() and self.scaler.get_scale() > 1):
            keys = [key for part in parts for key in part.keys]
            refuse_non_finite({"gradient norm": norm}, norm.reshape(1), self.step + 1, keys)
        return float(norm)

    def move(self, lr: float) -> None:
        """One step of the optimizer; the average follows the new weights, codebook and buffers are copied."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.averaged.update(self.model, self.step)

    def skip(self, config: OptimizationConfig, error: NonFiniteLossError) -> "SkippedStep":
        """Leave everything as it was before the step and count it, or raise where the config says stop."""
        self.optimizer.zero_grad(set_to_none=True)
        # The scaler keeps its scale and forgets that it may have unscaled these gradients; the zero makes the scale
        # where no loss was scaled yet.
        self.scaler.scale(torch.zeros((), device=next(self.model.parameters()).device))
        self.scaler.update(self.scaler.get_scale())
        self.averaged.undo_forward(self.model)
        if config.on_non_finite == "stop":
            raise error
        self.step, self.skipped = self.step + 1, self.skipped + 1
        return SkippedStep(self.step, str(error))


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
    return TrainingState(model, average, build_optimizer(model, config), runtime.scaler())
