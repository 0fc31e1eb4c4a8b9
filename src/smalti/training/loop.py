"""The training loop: everything that happens to the weights, in the order in which it happens.

What a step is made of lives in its own file: what it changes in `state.py`, the learning rate and optimizer in
`optimization.py`, the average in `averaging.py`, device, number format and processes in `runtime.py`, the gradient from
all pieces of a batch in `accumulation.py`, the discriminator, if there is one, in `adversarial.py`. What happens
between steps (logs, pictures, checkpoints) is the business of whoever iterates over `train_steps`.

Legend: B images of a piece, C channels, H x W pixels; a scalar has shape ().
图例:一小份 B 张图像,C 通道,H×W 像素;标量形状为 ()。
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from smalti.data import Batch
from smalti.losses import LossResult, LossTable
from smalti.ops.processes import sum_numbers
from smalti.quantizers import QuantizerOutput, one_codebook_update
from smalti.tokenizers import Tokenizer, TokenizerOutput
from smalti.training.accumulation import Hidden, Part, accumulate_gradients
from smalti.training.adversarial import Adversary, Verdict
from smalti.training.agreement import raise_together
from smalti.training.optimization import OptimizationConfig, learning_rate
from smalti.training.runtime import Runtime
from smalti.training.state import SkippedStep, TrainingState


class DataError(ValueError):
    """The next batch cannot be read; the state is that after the last complete step."""


@dataclass(frozen=True)
class Piece:
    """What one forward pass took and gave, without gradient."""

    image: Float[Tensor, "b c h w"]
    """Images (B, C, H, W) in [-1, 1]."""
    output: TokenizerOutput
    """What the model made of them, before the step changed the weights."""


@dataclass(frozen=True)
class StepResult:
    """What one step did, for whoever reports it."""

    step: int
    """Number of the step, from 1."""
    images: int
    """Images of the step, over all processes."""
    pieces: tuple[Piece, ...]
    """Those of this process."""
    loss: LossResult
    """The total and every unweighted term, without gradient: means over the images of all processes."""
    lr: float
    """Learning rate of the step."""
    grad_norm: Float[Tensor, ""]
    """Norm of the gradient before clipping; infinite where fp16 overflowed, which changes no weight."""
    seconds: float
    """How long the step took, waiting for the batch included."""
    verdict: Verdict | None = None
    """What the discriminator thought, while there is one that learns."""


class Objective(nn.Module):
    """Model and losses as one module: images in, the number to be minimised out."""

    def __init__(self, model: Tokenizer, losses: LossTable, runtime: Runtime, adversary: Adversary | None):
        super().__init__()
        self.model, self.losses, self.runtime, self.adversary = model, losses, runtime, adversary

    def forward(self, image_BCHW: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, ""], Hidden]:
        """The total loss (), and the model's output and the single terms for whoever wants to look."""
        # 2. Forward: encode, quantize, decode. The codebook may learn here too (moving average, revival).
        #    前向:编码、量化、解码;码本也可能在此更新(滑动平均、复活死码)
        with self.runtime.autocast():
            output = self.model(image_BCHW)
        # 3. Every loss term, unweighted, and their weighted sum () in fp32 / 各损失项及其加权和
        loss = self.losses(image_BCHW, output)
        if self.adversary is not None:  # once its time has come, the discriminator's opinion is one of the terms
            loss = self.adversary.oppose(loss, output.reconstruction)
        return loss.total, Hidden(loss, _detached(output))


def train_steps(
    state: TrainingState[Tokenizer],
    batches: Iterator[Batch],
    losses: LossTable,
    config: OptimizationConfig,
    runtime: Runtime,
    look_every: int = 1,
) -> Iterator[StepResult | SkippedStep]:
    """Train from `state.step` to `config.steps`, handing out each step's result after the step is complete.

    A GPU is never waited for within a step. So a step whose numbers are not finite changes nothing at once, but is
    told of as skipped only with the next look.

    Args:
        state: changed in place; from `start_state` with the same runtime, maybe with a checkpoint read into it.
        batches: this process's pieces, `config.accumulate` a step, from step `state.step` on.
        losses: the table of weights.
        config: learning rate, clipping, what to do about a loss that is not finite.
        runtime: device, number format, layout, processes.
        look_every: steps between two looks at whether losses and gradients are finite; on the CPU every step has one.

    Raises:
        NonFiniteLossError: a term or the gradient is NaN or infinite; names it, the step and the files of the batch.
        DataError: the next batch cannot be read.
    """
    state.model.train()
    objective = runtime.distribute(Objective(state.model, losses, runtime, state.adversary))
    while state.step < config.steps:
        start = time.perf_counter()
        # 1. The pieces of this step and how many images all processes have / 取本步的各小份,并统计所有进程的图像数
        parts, images = _next_parts(batches, config.accumulate, runtime)
        lr, verdict = learning_rate(config, state.step), None
        state.check.begin(state.step + 1)
        if state.adversary is not None:
            state.adversary.begin(state.step)
        # 4. Backward; the straight-through estimator carries the gradient past the codes / 反向:直通估计越过量化
        # Several pieces are one batch to the codebook, too / 多个小份对码本来说也是同一批
        with one_codebook_update(state.model) if len(parts) > 1 else nullcontext():
            outputs, loss = accumulate_gradients(objective, parts, state.check, state.scaler, runtime)
        grad_norm = state.clip_gradients(config, parts)
        pieces = tuple(Piece(part.inputs[0], output) for part, output in zip(parts, outputs, strict=True))
        # 5. The discriminator's own step, on the same images and reconstructions / 判别器在同样的图像上更新一次
        if state.adversary is not None:
            verdict = state.adversary.learn(parts, [piece.output.reconstruction for piece in pieces], lr, state.check)
        # 6. One AdamW step at the learning rate of this step number; the average follows the new weights, codebook and
        #    buffers are copied. Where a number is not finite, all of that is taken back
        #    按当前步数的学习率更新一次;平均权重跟随,码本与缓冲区直接复制;若有数值非有限,则全部撤回
        state.move(lr, grad_norm)
        skipped = state.look(config, look_every)
        yield from skipped
        if state.step not in [step.step for step in skipped]:
            yield StepResult(state.step, images, pieces, loss, lr, grad_norm, time.perf_counter() - start, verdict)


def _next_parts(batches: Iterator[Batch], count: int, runtime: Runtime) -> tuple[list[Part], int]:
    """This process's pieces of a step, on the device, and the images of the step over all processes."""
    pieces, failure = [], None
    try:
        pieces = [next(batches) for _ in range(count)]
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a worker process was killed
        failure = DataError(str(error))
    images, failures = sum_numbers(sum(len(piece) for piece in pieces), int(failure is not None))
    if failures:
        raise_together(failure)
    return [Part((runtime.place(piece.image),), len(piece) / images, piece.keys) for piece in pieces], images


def _detached(output: TokenizerOutput) -> TokenizerOutput:
    """The same without the graph that led to it, which would hold memory for as long as it is kept."""
    inner = output.quantizer_output
    terms = {name: term.detach() for name, term in inner.terms.items()}
    quantized = QuantizerOutput(inner.quantized.detach(), inner.indices, terms, inner.weights)
    return TokenizerOutput(output.reconstruction.detach(), quantized)
