"""The gradient of a step, from all pieces of its batch in all processes, and what happens if it is not finite.

A step's batch is held by all processes together, and each works through its part in pieces. A piece of n of the N
images counts n / N, in the gradient and in the reported loss, so neither the number of processes nor that of pieces
changes what is minimised. Tokenizer and discriminator both learn by this.

Legend: T loss terms; a scalar has shape ().
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.losses import LossResult
from smalti.ops.processes import process_count, sum_over_processes
from smalti.training.agreement import share
from smalti.training.runtime import Runtime

NAMED_AT_MOST = 8
"""How many files of a batch an error names."""


class NonFiniteLossError(ValueError):
    """A loss term or the gradient became NaN or infinite; the weights are those before that step."""

    exit_code = 4
    """What the command line ends with."""


@dataclass(frozen=True)
class Part:
    """A piece of the batch on its way to an objective."""

    inputs: tuple[Tensor, ...]
    """What the objective takes: images, maybe their reconstructions too, (B, C, H, W) each."""
    share: float
    """Its images over those of the step."""
    keys: Sequence[str]
    """The files that it came from."""


class Hidden:
    """A value in which DistributedDataParallel does not look for tensors.

    It expects a gradient of everything that its module returns leads to; only the total has one.
    """

    def __init__(self, loss: LossResult, seen: Any):
        self.loss, self.seen = loss, seen


def accumulate_gradients(
    objective: nn.Module, parts: Iterable[Part], step: int, scaler: torch.amp.GradScaler, runtime: Runtime
) -> tuple[list[Any], LossResult]:
    """Forward and backward over the parts; the gradients are then those of the mean over all images.

    Args:
        objective: takes a part's inputs; returns its total loss () and, hidden, the loss in terms and what was seen.
        parts: those of this process; their shares add up to 1 over all processes.
        step: number of the step from 1, for errors.
        scaler: of the loss in fp16.
        runtime: where gradients are exchanged.

    Returns:
        What was seen in each part, and the loss: means over the images of all processes, without gradient.

    Raises:
        NonFiniteLossError: a term is NaN or infinite.
    """
    parts, seen, numbers_T = list(parts), [], torch.zeros((), device=runtime.device)
    for number, part in enumerate(parts, start=1):
        with runtime.accumulate(objective, last=number == len(parts)):
            total, hidden = objective(*part.inputs)
            named = {**hidden.loss.terms, "total loss": total}
            own_T = torch.stack([value.detach().float() for value in named.values()]) * part.share
            joined_T = sum_over_processes(own_T)
            refuse_non_finite(dict(zip(named, own_T, strict=True)), joined_T, step, part.keys)
            numbers_T = numbers_T + joined_T
            # Processes take the mean of their gradients, hence the factor / 各进程梯度取平均,故乘以进程数
            scaler.scale(total * (part.share * process_count())).backward()
        seen.append(hidden.seen)
    *terms, total = numbers_T
    return seen, LossResult(total, dict(zip(hidden.loss.terms, terms, strict=True)), hidden.loss.weights)


def refuse_non_finite(own: dict[str, Tensor], joined_T: Float[Tensor, " t"], step: int, keys: Sequence[str]) -> None:
    """Raise in all processes if a number is not finite in one. One look at all of them, so that a GPU waits once."""
    if all(math.isfinite(number) for number in joined_T.tolist()):
        return
    bad = [f"{name} became {float(value)}" for name, value in own.items() if not math.isfinite(value)]
    culprits = [part for part in share((bad, keys)) if part[0]]
    if not culprits:  # finite numbers whose sum is not
        culprits = [(["the sum of the losses over all processes overflowed"], keys)]
    files = [key for _, part in culprits for key in part]
    named = ", ".join(files[:NAMED_AT_MOST])
    more = f" and {len(files) - NAMED_AT_MOST} more" if len(files) > NAMED_AT_MOST else ""
    raise NonFiniteLossError(f"{culprits[0][0][0]} at step {step}, on {named}{more}")
