"""Gradient accumulation: the gradient of a step from all pieces of its batch in all processes.

The batch of a step is divided among the processes, and each process handles its part in pieces. A piece of n of the N
images has weight n / N in the gradient and in the reported loss. So the minimised loss does not depend on the number of
processes or pieces. Tokenizer and discriminator both use this.
一步的批次分给各进程，每个进程再分小份处理；n 张图像的小份权重为 n / N，因此损失与进程数、小份数无关。

Legend: T loss terms; a scalar has shape ().
图例：T 个损失项；标量形状为 ()。
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
    """A piece of the batch, as input of an objective."""

    inputs: tuple[Any, ...]
    """Inputs of the objective; the first is images (B, C, H, W) or tokens (B, L)."""
    fraction: float
    """Its number of images, divided by that of the step."""
    sources: Sequence[str]
    """Its origin, such as files."""


class Hidden:
    """A value in which DistributedDataParallel does not search for tensors.

    DistributedDataParallel expects a gradient for every tensor that a module returns; only the total loss has one.
    """

    def __init__(self, loss: LossResult, output: Any):
        self.loss, self.output = loss, output


def accumulate_gradients(
    objective: nn.Module, parts: Iterable[Part], check: FiniteCheck, scaler: torch.amp.GradScaler, runtime: Runtime
) -> tuple[list[Any], LossResult]:
    """Forward and backward passes over the parts; the gradients are then those of the mean over all images.

    对每个小份做前向与反向；所得梯度是全部图像平均损失的梯度。

    Args:
        objective: takes a part's inputs; returns its total loss () and, as `Hidden`, the loss terms and its output.
        parts: the parts of this process; their fractions add up to 1 over all processes.
        check: receives every loss term.
        scaler: scales the loss in fp16.
        runtime: exchanges gradients.

    Returns:
        The output of each part, and the loss as means over the images of all processes, without gradient.
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
            # The exchange averages gradients over processes, hence the factor / 各进程梯度取平均，故乘以进程数
            scaler.scale(total * (part.fraction * process_count())).backward()
        outputs.append(hidden.output)
    *terms, total = numbers_T
    return outputs, LossResult(total, dict(zip(hidden.loss.terms, terms, strict=True)), hidden.loss.weights)
