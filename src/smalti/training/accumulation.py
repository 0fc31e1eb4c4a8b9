"""The gradient of a step, from all pieces of its batch in all processes.

A step's batch is held by all processes together, and each works through its part in pieces. A piece of n of the N
images counts n / N, in the gradient and in the reported loss, so neither the number of processes nor that of pieces
changes what is minimised. Tokenizer and discriminator both learn by this.

Legend: T loss terms; a scalar has shape ().
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from smalti.distributed import process_count, sum_over_processes
from smalti.losses import LossResult
from smalti.training.finite_check import FiniteCheck
from smalti.training.runtime import Runtime


@dataclass(frozen=True)
class Part:
    """A piece of the batch on its way to an objective."""

    inputs: tuple[Any, ...]
    """What the objective takes, first of all images (B, C, H, W) or tokens (B, L)."""
    fraction: float
    """Its images over those of the step."""
    sources: Sequence[str]
    """What it was made from, such as files."""


class Hidden:
    """A value in which DistributedDataParallel does not look for tensors.

    It expects a gradient of everything that its module returns leads to; only the total has one.
    """

    def __init__(self, loss: LossResult, output: Any):
        self.loss, self.output = loss, output


def accumulate_gradients(
    objective: nn.Module, parts: Iterable[Part], check: FiniteCheck, scaler: torch.amp.GradScaler, runtime: Runtime
) -> tuple[list[Any], LossResult]:
    """Forward and backward over the parts; the gradients are then those of the mean over all images.

    Args:
        objective: takes a part's inputs; returns its total loss () and, hidden, the loss in terms and its output.
        parts: those of this process; their fractions add up to 1 over all processes.
        check: sees every loss term.
        scaler: of the loss in fp16.
        runtime: where gradients are exchanged.

    Returns:
        The output of each part, and the loss: means over the images of all processes, without gradient.
    """
    parts, outputs, numbers_T = list(parts), [], torch.zeros((), device=runtime.device)
    for number, part in enumerate(parts, start=1):
        with runtime.accumulate(objective, last=number == len(parts)):
            total, hidden = objective(*part.inputs)
            named = {**hidden.loss.terms, "total loss": total}
            own_T = torch.stack([value.detach().float() for value in named.values()]) * part.fraction
            joined_T = sum_over_processes(own_T)
            check.see(dict(zip(named, own_T, strict=True)), joined_T, part.sources)
            numbers_T = numbers_T + joined_T
            # Processes take the mean of their gradients, hence the factor / 各进程梯度取平均，故乘以进程数
            scaler.scale(total * (part.fraction * process_count())).backward()
        outputs.append(hidden.output)
    *terms, total = numbers_T
    return outputs, LossResult(total, dict(zip(hidden.loss.terms, terms, strict=True)), hidden.loss.weights)
