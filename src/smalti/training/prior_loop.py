"""The training loop of priors: tokens in, likelihood out. `loop.py` is that of tokenizers, where more happens.

Everything that the two have in common lives below both: gradients over pieces and processes (`accumulation.py`), the
optimizer and its learning rate, the average, checkpoints.

Legend: B images, L tokens an image; a scalar has shape ().
图例:B 张图像,每张 L 个词元;标量形状为 ()。
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from smalti.data import TokenBatch
from smalti.losses import LossResult
from smalti.priors import Prior
from smalti.training.accumulation import Hidden, Part, accumulate_gradients
from smalti.training.optimization import OptimizationConfig, learning_rate
from smalti.training.runtime import Runtime
from smalti.training.state import SkippedStep, TrainingState


@dataclass(frozen=True)
class PriorStep:
    """What one step did, for whoever reports it."""

    step: int
    """Number of the step, from 1."""
    images: int
    """Images of the step, over all processes."""
    loss: Float[Tensor, ""]
    """Mean negative log-likelihood in nats a token."""
    lr: float
    """Learning rate of the step."""
    grad_norm: Float[Tensor, ""]
    """Norm of the gradient before clipping; infinite where fp16 overflowed, which changes no weight."""
    seconds: float
    """How long the step took."""


class Likelihood(nn.Module):
    """A prior and its loss as one module: tokens in, the number to be minimised out."""

    def __init__(self, prior: Prior, runtime: Runtime):
        super().__init__()
        self.prior, self.runtime = prior, runtime

    def forward(
        self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], Hidden]:
        """Nats a token (), and the same as a named term."""
        with self.runtime.autocast():
            nats = self.prior.loss(tokens_BL, labels_B)
        return nats, Hidden(LossResult(nats, {"nats": nats}, {"nats": 1.0}), None)


def train_prior_steps(
    state: TrainingState[Prior],
    batches: Iterator[TokenBatch],
    config: OptimizationConfig,
    runtime: Runtime,
    look_every: int = 1,
) -> Iterator[PriorStep | SkippedStep]:
    """Train from `state.step` to `config.steps`, handing out each step's result after the step is complete.

    Args:
        state: changed in place; its model is a prior.
        batches: this process's pieces, `config.accumulate` a step, from step `state.step` on; labels are those of the
            prior, `num_classes` for none.
        config: learning rate, clipping, what to do about a loss that is not finite.
        runtime: device, number format, processes.
        look_every: steps between two looks at whether losses and gradients are finite, as in `train_steps`.

    Raises:
        NonFiniteLossError: the loss or the gradient is NaN or infinite.
    """
    state.model.train()
    objective = runtime.distribute(Likelihood(state.model, runtime))
    while state.step < config.steps:
        start = time.perf_counter()
        # 1. The pieces of this step / 取本步的各小份
        pieces = [next(batches) for _ in range(config.accumulate)]
        parts = [_part(piece, state.model, config, runtime) for piece in pieces]
        state.check.begin(state.step + 1)
        # 2. Likelihood of the true tokens, and its gradient / 真实词元的似然及其梯度
        _, loss = accumulate_gradients(objective, parts, state.check, state.scaler, runtime)
        grad_norm = state.clip_gradients(config, parts)
        # 3. One AdamW step, then the average follows / AdamW 更新一次,平均权重跟随
        lr = learning_rate(config, state.step)
        state.move(lr, grad_norm)
        skipped = state.look(config, look_every)
        yield from skipped
        if state.step not in [step.step for step in skipped]:
            seconds = time.perf_counter() - start
            yield PriorStep(state.step, config.batch_size, loss.total, lr, grad_norm, seconds)


def _part(piece: TokenBatch, prior: Prior, config: OptimizationConfig, runtime: Runtime) -> Part:
    prior.check(piece.tokens, piece.labels)
    inputs = (runtime.send(piece.tokens), runtime.send(piece.labels))
    return Part(inputs, len(piece) / config.batch_size, ("tokens",) * len(piece))


@torch.no_grad()
def validation_nats(prior: Prior, batches: Iterator[TokenBatch], runtime: Runtime) -> float:
    """Mean negative log-likelihood in nats a token of a prior in eval mode over all batches."""
    total, images = 0.0, 0
    for batch in batches:
        with runtime.autocast():
            nats = prior.loss(batch.tokens.to(runtime.device), batch.labels.to(runtime.device))
        total, images = total + float(nats) * len(batch), images + len(batch)
    return total / images
