"""The training loop: all operations on the weights, in their order.

Tokenizers and priors share this loop. They differ in their objective, a module of model and loss (`objectives.py`); a
tokenizer may also have a discriminator (`gan/`). The state that a step changes is in `state.py`; learning rate,
optimizer and averaged weights are in `optimization.py`, gradient accumulation in `accumulation.py`, device, number
format and processes in `runtime.py`. The caller that iterates over `train_steps` does the work between steps (logs,
pictures, checkpoints): `session.py`.
分词器与先验共用这一个循环，区别只在目标（模型加损失）；步与步之间的日志、图片、检查点见 `session.py`。
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from smalti.distributed import raise_together, sum_numbers
from smalti.losses import LossResult
from smalti.quantizers import Quantizer, one_codebook_update
from smalti.training.accumulation import Part, accumulate_gradients
from smalti.training.gan import DiscriminatorResult, GANStep, GANTrainer, two_backward_passes
from smalti.training.objectives import Objective
from smalti.training.optimization import OptimizationConfig, learning_rate
from smalti.training.runtime import Runtime
from smalti.training.state import SkippedStep, TrainingState


class DataError(ValueError):
    """The next batch cannot be read; the state is that after the last complete step."""


@dataclass(frozen=True)
class StepResult:
    """Result of one step, for logs."""

    step: int
    """Number of the step, from 1."""
    images: int
    """Images of the step, over all processes."""
    outputs: tuple[Any, ...]
    """Output of the objective for each piece of this process: a `TokenizerPass`, or None for a prior."""
    loss: LossResult
    """Total loss and all unweighted terms, without gradient: means over the images of all processes."""
    lr: float
    """Learning rate of the step."""
    grad_norm: Float[Tensor, ""]
    """Norm of the gradient before clipping; infinite if fp16 overflowed, and then the weights do not change."""
    seconds: float
    """Duration of the step in seconds, including the wait for the batch."""
    discriminator: DiscriminatorResult | None = None
    """Result of the discriminator, if one is learning."""


def train_steps(
    state: TrainingState[Any],
    batches: Iterator[Any],
    objective: Objective,
    config: OptimizationConfig,
    runtime: Runtime,
    gan: GANTrainer | None = None,
    look_every: int = 1,
) -> Iterator[StepResult | SkippedStep]:
    """Train from `state.step` to `config.steps`, and yield the result of each complete step.

    A step never waits for a GPU. A step with non-finite numbers changes nothing; the next look reports it as skipped.
    从 `state.step` 训练到 `config.steps`，每步完成后给出结果；步内从不等待 GPU。

    Args:
        state: changed in place; from `start_state` with the same runtime, possibly with a checkpoint read into it.
        batches: pieces of this process, `config.accumulate` per step, starting at step `state.step`.
        objective: model and loss; its model is that of `state`.
        config: learning rate, clipping, and the action for a non-finite loss.
        runtime: device, number format, layout, processes.
        gan: trains the discriminator of a tokenizer; None: no discriminator.
        look_every: steps between checks of losses and gradients for non-finite values; on the CPU every step.

    Raises:
        NonFiniteLossError: a term or the gradient is NaN or infinite; names it, the step and the files of the batch.
        DataError: the next batch cannot be read.
    """
    state.model.train()
    module = runtime.distribute(objective)
    while state.step < config.steps:
        start = time.perf_counter()
        # 1. Pieces: move those of this process to the device, count the images of all processes
        #    取本步的各小份送往设备，并统计所有进程的图像数
        gan_step = None if gan is None else gan.begin_step(state.step)
        parts, images = _next_parts(batches, objective, config.accumulate, gan_step)
        lr = learning_rate(config, state.step)
        _set_progress(state.model, state.step / config.steps)
        state.check.begin(state.step + 1)
        # 2. Forward, loss and backward of every piece (`Objective.forward`); for the codebook, too, several pieces
        #    are one batch / 对每个小份做前向、损失与反向；多个小份对码本来说也是同一批
        one_update = one_codebook_update(state.model) if len(parts) > 1 else nullcontext()
        with one_update, two_backward_passes(gan is not None and runtime.compile):
            outputs, loss = accumulate_gradients(module, parts, state.check, state.scaler, runtime)
        # 3. Clipping: limit the norm of the gradient of all weights / 裁剪：整体梯度过长则缩短
        grad_norm = state.clip_gradients(config, parts)
        # 4. Discriminator: one step, on the same images and reconstructions / 判别器在同样的图像与重建上更新一次
        discriminator = None
        if gan_step is not None:
            discriminator = gan_step.update_discriminator(
                parts, [x.output.reconstruction for x in outputs], lr, state.check
            )
        # 5. Update: one AdamW step at the learning rate of this step; update the averaged weights, copy codebook and
        #    buffers. If a number is not finite, undo all of this
        #    更新：按当前步的学习率做一次 AdamW；平均权重跟随，码本与缓冲区直接复制；若有数值非有限，则全部撤回
        state.update(lr, grad_norm)
        skipped = state.look(config, look_every)
        yield from skipped
        if state.step not in [step.step for step in skipped]:
            seconds = time.perf_counter() - start
            yield StepResult(state.step, images, tuple(outputs), loss, lr, grad_norm, seconds, discriminator)


def _set_progress(model: nn.Module, done: float) -> None:
    """Tell every quantizer the completed fraction of the steps: temperatures are annealed, revival ends."""
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.set_progress(done)


def _next_parts(
    batches: Iterator[Any], objective: Objective, count: int, gan_step: GANStep | None
) -> tuple[list[Part], int]:
    """Pieces of this process for a step, on the device, and the number of images over all processes."""
    pieces, failure = [], None
    try:
        pieces = [next(batches) for _ in range(count)]
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a worker process was killed
        failure = DataError(str(error))
    images, failures = sum_numbers(sum(len(piece) for piece in pieces), int(failure is not None))
    if failures:
        raise_together(failure)
    extra = () if gan_step is None else (gan_step,)
    parts = [Part((*objective.inputs(x), *extra), len(x) / images, objective.sources(x)) for x in pieces]
    return parts, images
