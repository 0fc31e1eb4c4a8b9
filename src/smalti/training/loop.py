"""The training loop: everything that happens to the weights, in the order in which it happens.

Tokenizers and priors learn by this one loop. They differ in their objective, which is model and loss as one module
(`objectives.py`); a tokenizer may have a discriminator too (`gan/`). What a step changes is in `state.py`, the learning
rate, the optimizer and the average in `optimization.py`, the gradient from all pieces of a batch in `accumulation.py`,
device, number format and processes in `runtime.py`. What happens between steps (logs, pictures, checkpoints) is the
business of whoever iterates over `train_steps`: `session.py`.
分词器与先验共用这一个循环，区别只在目标（模型加损失）；步与步之间的日志、图片、检查点见 `session.py`。
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from smalti.distributed import raise_together, sum_numbers
from smalti.losses import LossResult
from smalti.quantizers import one_codebook_update
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
    """What one step did, for whoever reports it."""

    step: int
    """Number of the step, from 1."""
    images: int
    """Images of the step, over all processes."""
    outputs: tuple[Any, ...]
    """What the objective keeps of each piece of this process: a `TokenizerPass`, or None of a prior."""
    loss: LossResult
    """The total and every unweighted term, without gradient: means over the images of all processes."""
    lr: float
    """Learning rate of the step."""
    grad_norm: Float[Tensor, ""]
    """Norm of the gradient before clipping; infinite where fp16 overflowed, which changes no weight."""
    seconds: float
    """How long the step took, waiting for the batch included."""
    discriminator: DiscriminatorResult | None = None
    """What the discriminator did, while there is one that learns."""


def train_steps(
    state: TrainingState[Any],
    batches: Iterator[Any],
    objective: Objective,
    config: OptimizationConfig,
    runtime: Runtime,
    gan: GANTrainer | None = None,
    look_every: int = 1,
) -> Iterator[StepResult | SkippedStep]:
    """Train from `state.step` to `config.steps`, handing out each step's result after the step is complete.

    A GPU is never waited for within a step. So a step whose numbers are not finite changes nothing at once, but is
    told of as skipped only with the next look.

    Args:
        state: changed in place; from `start_state` with the same runtime, maybe with a checkpoint read into it.
        batches: this process's pieces, `config.accumulate` a step, from step `state.step` on.
        objective: what is minimised; its model is that of `state`.
        config: learning rate, clipping, what to do about a loss that is not finite.
        runtime: device, number format, layout, processes.
        gan: trains the discriminator of a tokenizer; None: there is none.
        look_every: steps between two looks at whether losses and gradients are finite; on the CPU every step has one.

    Raises:
        NonFiniteLossError: a term or the gradient is NaN or infinite; names it, the step and the files of the batch.
        DataError: the next batch cannot be read.
    """
    state.model.train()
    module = runtime.distribute(objective)
    while state.step < config.steps:
        start = time.perf_counter()
        # 1. Pieces: those of this process on the device, and how many images all processes have
        #    取本步的各小份送往设备，并统计所有进程的图像数
        gan_step = None if gan is None else gan.begin_step(state.step)
        parts, images = _next_parts(batches, objective, config.accumulate, gan_step)
        lr = learning_rate(config, state.step)
        state.check.begin(state.step + 1)
        # 2. Forward, loss and backward of every piece (`Objective.forward`); several pieces are one batch, to the
        #    codebook too / 对每个小份做前向、损失与反向；多个小份对码本来说也是同一批
        one_update = one_codebook_update(state.model) if len(parts) > 1 else nullcontext()
        with one_update, two_backward_passes(gan is not None and runtime.compile):
            outputs, loss = accumulate_gradients(module, parts, state.check, state.scaler, runtime)
        # 3. Clipping: the gradient of all weights together is shortened / 裁剪：整体梯度过长则缩短
        grad_norm = state.clip_gradients(config, parts)
        # 4. Discriminator: its own step, on the same images and reconstructions / 判别器在同样的图像与重建上更新一次
        discriminator = None
        if gan_step is not None:
            discriminator = gan_step.update_discriminator(
                parts, [x.output.reconstruction for x in outputs], lr, state.check
            )
        # 5. Update: one AdamW step at the learning rate of this step; the average follows the new weights, codebook and
        #    buffers are copied. Where a number is not finite, all of that is taken back
        #    更新：按当前步的学习率做一次 AdamW；平均权重跟随，码本与缓冲区直接复制；若有数值非有限，则全部撤回
        state.update(lr, grad_norm)
        skipped = state.look(config, look_every)
        yield from skipped
        if state.step not in [step.step for step in skipped]:
            seconds = time.perf_counter() - start
            yield StepResult(state.step, images, tuple(outputs), loss, lr, grad_norm, seconds, discriminator)


def _next_parts(
    batches: Iterator[Any], objective: Objective, count: int, gan_step: GANStep | None
) -> tuple[list[Part], int]:
    """This process's pieces of a step, on the device, and the images of the step over all processes."""
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
