"""The training loop: everything that happens to the weights, in the order in which it happens.

What a step is made of lives in its own file: the learning rate and optimizer in `optimization.py`, the average in
`averaging.py`, device, number format and processes in `runtime.py`, the gradient from all pieces of a batch in
`accumulation.py`, the discriminator, if there is one, in `adversarial.py`. What happens between steps (logs, pictures,
checkpoints) is the business of whoever iterates over `train_steps`.

Legend: B images of a piece, C channels, H x W pixels; a scalar has shape ().
图例:一小份 B 张图像,C 通道,H×W 像素;标量形状为 ()。
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.data import Batch
from smalti.losses import LossResult, LossTable
from smalti.ops.processes import sum_over_processes
from smalti.quantizers import QuantizerOutput
from smalti.tokenizers import Tokenizer, TokenizerOutput
from smalti.training.accumulation import Hidden, NonFiniteLossError, Part, accumulate_gradients, refuse_non_finite
from smalti.training.adversarial import Adversary, Verdict
from smalti.training.agreement import raise_together
from smalti.training.averaging import AveragedModel
from smalti.training.optimization import OptimizationConfig, build_optimizer, learning_rate
from smalti.training.runtime import Runtime


class DataError(ValueError):
    """The next batch cannot be read; the state is that after the last complete step."""


@dataclass
class TrainingState:
    """All that a step changes, apart from random states: what a checkpoint has to hold."""

    model: Tokenizer
    """The weights that gradients move. Its quantizer also moves its codebook in each forward pass in train mode."""
    averaged: AveragedModel[Tokenizer]
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
    grad_norm: float
    """Norm of the gradient before clipping; infinite where fp16 overflowed, which changes no weight."""
    seconds: float
    """How long the step took, waiting for the batch included."""
    verdict: Verdict | None = None
    """What the discriminator thought, while there is one that learns."""


@dataclass(frozen=True)
class SkippedStep:
    """A step that changed nothing, because its loss or gradient was not finite and the config says skip."""

    step: int
    """Number of the step, from 1."""
    reason: str
    """Which term, which step, which files."""


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
    state: TrainingState, batches: Iterator[Batch], losses: LossTable, config: OptimizationConfig, runtime: Runtime
) -> Iterator[StepResult | SkippedStep]:
    """Train from `state.step` to `config.steps`, handing out each step's result after the step is complete.

    Args:
        state: changed in place; from `start_state` with the same runtime, maybe with a checkpoint read into it.
        batches: this process's pieces, `config.accumulate` a step, from step `state.step` on.
        losses: the table of weights.
        config: learning rate, clipping, what to do about a loss that is not finite.
        runtime: device, number format, layout, processes.

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
        if state.adversary is not None:
            state.adversary.begin(state.step)
        try:
            # 4. Backward; the straight-through estimator carries the gradient past the codes / 反向:直通估计越过量化
            outputs, loss = accumulate_gradients(objective, parts, state.step + 1, state.scaler, runtime)
            grad_norm = _clip_gradients(state, config, parts)
            pieces = tuple(Piece(part.inputs[0], output) for part, output in zip(parts, outputs, strict=True))
            # 5. The discriminator's own step, on the same images and reconstructions / 判别器在同样的图像上更新一次
            if state.adversary is not None:
                verdict = state.adversary.learn(parts, [piece.output.reconstruction for piece in pieces], lr)
        except NonFiniteLossError as error:
            state.optimizer.zero_grad(set_to_none=True)
            state.averaged.undo_forward(state.model)
            if config.on_non_finite == "stop":
                raise
            state.step, state.skipped = state.step + 1, state.skipped + 1
            yield SkippedStep(state.step, str(error))
            continue
        # 6. One AdamW step at the learning rate of this step number / 按当前步数的学习率更新一次
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        # 7. The average follows the new weights; codebook and buffers are copied / 平均权重跟随;码本与缓冲区直接复制
        state.step += 1
        state.averaged.update(state.model, state.step)
        yield StepResult(state.step, images, pieces, loss, lr, grad_norm, time.perf_counter() - start, verdict)


def start_state(model: Tokenizer, config: OptimizationConfig, runtime: Runtime) -> TrainingState:
    """The state before the first step: the model on its device, its copy to average into, a fresh optimizer."""
    runtime.prepare(model)
    average = AveragedModel(model, config.ema_decay)
    return TrainingState(model, average, build_optimizer(model, config), runtime.scaler())


def _next_parts(batches: Iterator[Batch], count: int, runtime: Runtime) -> tuple[list[Part], int]:
    """This process's pieces of a step, on the device, and the images of the step over all processes."""
    pieces, failure = [], None
    try:
        pieces = [next(batches) for _ in range(count)]
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a worker process was killed
        failure = DataError(str(error))
    own = [sum(len(piece) for piece in pieces), int(failure is not None)]
    images, failures = sum_over_processes(torch.tensor(own, device=runtime.device)).tolist()
    if failures:
        raise_together(failure)
    return [Part((runtime.place(piece.image),), len(piece) / images, piece.keys) for piece in pieces], images


def _clip_gradients(state: TrainingState, config: OptimizationConfig, parts: list[Part]) -> float:
    """Shorten the gradient of all weights together to `grad_clip`, and return the norm that it had."""
    state.scaler.unscale_(state.optimizer)
    trainable = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
    norm = nn.utils.clip_grad_norm_(trainable, config.grad_clip)
    # An overflow under a large scale is no failure: the scaler leaves the weights alone and halves the scale.
    if not (state.scaler.is_enabled() and state.scaler.get_scale() > 1):
        keys = [key for part in parts for key in part.keys]
        refuse_non_finite({"gradient norm": norm}, norm.reshape(1), state.step + 1, keys)
    return float(norm)


def _detached(output: TokenizerOutput) -> TokenizerOutput:
    """The same without the graph that led to it, which would hold memory for as long as it is kept."""
    inner = output.quantizer_output
    terms = {name: term.detach() for name, term in inner.terms.items()}
    quantized = QuantizerOutput(inner.quantized.detach(), inner.indices, terms, inner.weights)
    return TokenizerOutput(output.reconstruction.detach(), quantized)
