"""The training loop: everything that happens to the weights, in the order in which it happens.

What a step is made of lives in its own file: the learning rate and optimizer in `optimization.py`, the average in
`averaging.py`, device and number format in `runtime.py`. What happens between steps (logs, pictures, checkpoints) is
the business of whoever iterates over `train_steps`.

Legend: B images, C channels, H x W pixels; a scalar has shape ().
图例:B 张图像,C 通道,H×W 像素;标量形状为 ()。
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from smalti.data import Batch
from smalti.losses import LossResult, LossTable
from smalti.tokenizers import Tokenizer, TokenizerOutput
from smalti.training.averaging import AveragedModel
from smalti.training.optimization import OptimizationConfig, build_optimizer, learning_rate
from smalti.training.runtime import Runtime

NAMED_AT_MOST = 8
"""How many files of a batch an error names."""


class NonFiniteLossError(ValueError):
    """A loss term or the gradient became NaN or infinite; the weights are those before that step."""

    exit_code = 4
    """What the command line ends with."""


@dataclass
class TrainingState:
    """All that a step changes, apart from torch's random state: what a checkpoint has to hold."""

    model: Tokenizer
    """The weights that gradients move. Its quantizer also moves its codebook in each forward pass in train mode."""
    averaged: AveragedModel[Tokenizer]
    """The moving average of those weights: what the run delivers."""
    optimizer: torch.optim.Optimizer
    """AdamW with its two moving averages for each weight."""
    step: int = 0
    """Completed steps; also the number of the next batch, so it is the position in the data."""


@dataclass(frozen=True)
class StepResult:
    """What one step did, for whoever reports it."""

    step: int
    """Number of the step, from 1."""
    image: Float[Tensor, "b c h w"]
    """The batch (B, C, H, W) in [-1, 1]."""
    output: TokenizerOutput
    """What the model made of it, before the step changed the weights."""
    loss: LossResult
    """The total and every unweighted term, without gradient."""
    lr: float
    """Learning rate of the step."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    seconds: float
    """How long the step took, waiting for the batch included."""


def train_steps(
    state: TrainingState, batches: Iterator[Batch], losses: LossTable, config: OptimizationConfig, runtime: Runtime
) -> Iterator[StepResult]:
    """Train from `state.step` to `config.steps`, handing out each step's result after the step is complete.

    Args:
        state: changed in place; from `start_state` with the same runtime, maybe with a checkpoint read into it.
        batches: the batches from number `state.step` on.
        losses: the table of weights.
        config: learning rate and clipping.
        runtime: device, number format, layout.

    Raises:
        NonFiniteLossError: a term or the gradient is NaN or infinite; names it, the step and the files of the batch.
    """
    state.model.train()
    forward = runtime.prepare(state.model)
    trainable = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
    while state.step < config.steps:
        start = time.perf_counter()
        # 1. A batch on the device, (B, C, H, W) in [-1, 1] / 取一批图像
        batch = next(batches)
        image_BCHW = runtime.place(batch.image)
        # 2. Forward: encode, quantize, decode. The codebook may learn here too (moving average, revival).
        #    前向:编码、量化、解码;码本也可能在此更新(滑动平均、复活死码)
        with runtime.autocast():
            output = forward(image_BCHW)
        # 3. Every loss term, unweighted, and their weighted sum () in fp32 / 各损失项及其加权和
        loss = losses(image_BCHW, output)
        _refuse_non_finite({**loss.terms, "total loss": loss.total}, state.step + 1, batch)
        # 4. Backward; the straight-through estimator carries the gradient past the codes / 反向:直通估计越过量化
        runtime.backward(loss.total)
        grad_norm = runtime.clip_gradients(trainable, config.grad_clip)
        _refuse_non_finite({"gradient norm": grad_norm}, state.step + 1, batch)
        # 5. One AdamW step at the learning rate of this step number / 按当前步数的学习率更新一次
        lr = learning_rate(config, state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        # 6. The average follows the new weights; codebook and buffers are copied / 平均权重跟随;码本与缓冲区直接复制
        state.step += 1
        state.averaged.update(state.model, state.step)
        seconds = time.perf_counter() - start
        yield StepResult(state.step, image_BCHW, output, _detached(loss), lr, float(grad_norm), seconds)


def start_state(model: Tokenizer, config: OptimizationConfig, runtime: Runtime) -> TrainingState:
    """The state before the first step: the model on its device, its copy to average into, a fresh optimizer."""
    runtime.prepare(model)
    return TrainingState(model, AveragedModel(model, config.ema_decay), build_optimizer(model, config))


def _detached(loss: LossResult) -> LossResult:
    """The same numbers without the graph that led to them, which would hold memory for as long as they are kept."""
    terms = {name: term.detach() for name, term in loss.terms.items()}
    return LossResult(loss.total.detach(), terms, loss.weights)


def _refuse_non_finite(values: dict[str, Tensor], step: int, batch: Batch) -> None:
    """One look at all values together, so that a GPU waits once."""
    numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()
    for name, number in zip(values, numbers, strict=True):
        if not math.isfinite(number):
            named = ", ".join(batch.keys[:NAMED_AT_MOST])
            more = f" and {len(batch.keys) - NAMED_AT_MOST} more" if len(batch.keys) > NAMED_AT_MOST else ""
            raise NonFiniteLossError(f"{name} became {number} at step {step}, on {named}{more}")
