"""Optimization: the optimizer, its weight decay, the learning rate schedule and the averaged weights.

优化：AdamW、权重衰减的对象、每一步的学习率，以及平均权重（EMA）。

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with linear warm-up and cosine decay (arXiv 1608.03983). The
learning rate depends only on the step number, so no scheduler state could be lost on resume.

The averaged weights are an exponential moving average of the trained weights, in a second copy of the model, and of
better quality. Source: Polyak and Juditsky 1992; the decay rises as min(decay, (1 + t) / (10 + t)), as in TensorFlow's
ExponentialMovingAverage. A run delivers the averaged weights; the trained weights are kept in checkpoints.
"""

import copy
import math
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.checks import at_least, below_one, between, expect, one_of
from smalti.quantizers.sim_vq import CodeTransform
from smalti.quantizers.vector import Codebook

Model = TypeVar("Model", bound=nn.Module)
Pairs = tuple[list[Tensor], list[Tensor]]

MOST_IMAGES = 2**20
"""Largest batch size; a larger value is a typing error and fits no memory."""


@dataclass(frozen=True)
class OptimizationConfig:
    """Number of steps, batch size, learning rate, weight decay and averaging."""

    steps: int = 10_000
    """Number of optimizer steps."""
    batch_size: int = 32
    """Images per step, over all processes and pieces together."""
    accumulate: int = 1
    """Number of pieces that each process splits its images of a step into, to save memory."""
    lr: float = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    warmup_steps: int = 100
    """Number of first steps, over which the learning rate rises from 0 to lr."""
    decay_steps: int | None = None
    """Number of last steps, over which the learning rate falls; before them it stays at lr, so a resumed run may have
    more steps. null: all steps after the warm-up."""
    min_lr_ratio: float = 0.02
    """Learning rate of the last step, as a fraction of lr, at the end of a cosine decay."""
    weight_decay: float = 0.01
    """Weight decay of AdamW (decoupled), only for kernels of linear and convolutional layers."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of AdamW's two moving averages."""
    grad_clip: float = 1.0
    """Maximum gradient norm over all weights; a larger gradient is scaled down to it. inf: no clipping."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """Action when a loss or the gradient is NaN or infinite: stop the run, or skip the batch and count it."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are saved and used; 0: no averaging. It rises to this value over the first
    steps."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, batch_size=self.batch_size, accumulate=self.accumulate)
        expect(self.batch_size <= MOST_IMAGES, "batch_size", self.batch_size, f"at most {MOST_IMAGES}")
        expect(0 < self.lr < math.inf, "lr", self.lr, "a finite number above 0")
        at_least(0, warmup_steps=self.warmup_steps)
        expect(self.decay_steps is None or self.decay_steps >= 0, "decay_steps", self.decay_steps, "null or at least 0")
        between(0, 1, min_lr_ratio=self.min_lr_ratio)
        expect(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "at least 0")
        expect(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers of at least 0 and below 1")
        expect(self.grad_clip > 0, "grad_clip", self.grad_clip, "a number above 0 (inf: no clipping)")
        one_of(("stop", "skip"), on_non_finite=self.on_non_finite)
        below_one(ema_decay=self.ema_decay)


def learning_rate(config: OptimizationConfig, step: int) -> float:
    """Learning rate of the step after `step` completed ones: warm-up, plateau at lr, cosine to lr * min_lr_ratio.

    >>> config = OptimizationConfig(steps=1000, lr=1.0, warmup_steps=100, min_lr_ratio=0.1)
    >>> [round(learning_rate(config, step), 3) for step in (0, 99, 999)]
    [0.01, 1.0, 0.1]
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    start, last = config.warmup_steps, config.steps - 1
    if config.decay_steps is not None:
        start = max(start, last - config.decay_steps)
    progress = min(1.0, max(0.0, (step - start) / max(1, last - start)))
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def piece_size(config: OptimizationConfig, processes: int) -> int:
    """Images per piece in each process.

    Raises:
        ValueError: the batch cannot be split into equal pieces.
    """
    pieces = processes * config.accumulate
    allowed = f"a multiple of {pieces} (processes {processes} x accumulate {config.accumulate})"
    expect(config.batch_size % pieces == 0, "batch_size", config.batch_size, allowed)
    return config.batch_size // pieces


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The trainable parameters of a model in two groups, with and without weight decay.

    Weight decay pulls a weight toward 0. This regularizes kernels of linear and convolutional layers, as norms can
    compensate their scale. It is wrong for all other parameters: the scale of a norm should stay near 1, and biases,
    temperatures and embeddings of tokens, positions or codes should stay at their learned values.
    """
    kernels = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and not isinstance(module, CodeTransform)
    }
    return _groups(model, kernels, weight_decay)


def _groups(model: nn.Module, decayed: set[int], weight_decay: float) -> list[dict]:
    """Trainable parameters whose `id` is in `decayed`, and the others."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) not in decayed], "weight_decay": 0.0},
    ]


def regrouped(saved: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Convert an older optimizer state, with weight decay on all matrices but embeddings, to the current groups.

    Args:
        saved: the older `state_dict` of the optimizer.
        model: the model of the optimizer.
        optimizer: the optimizer to read the state into.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = {id(p) for p in model.parameters() if p.dim() >= 2} - tables
    former = {id(p): n for n, p in enumerate(chain(*(g["params"] for g in _groups(model, matrices, 0.0))))}
    now = [id(p) for group in optimizer.param_groups for p in group["params"]]
    numbers = iter(range(len(now)))
    groups = [
        {**old, "params": [next(numbers) for _ in new["params"]]}
        for old, new in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    moved = {n: saved["state"][former[p]] for n, p in enumerate(now) if former[p] in saved["state"]}
    return {"state": moved, "param_groups": groups}


def build_optimizer(model: nn.Module, config: OptimizationConfig) -> torch.optim.AdamW:
    """Fused AdamW, one kernel per group, for the trainable parameters of a model that is already on its device."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def step_unless(optimizer: torch.optim.Optimizer, held: Float[Tensor, ""]) -> None:
    """One step of a fused optimizer; where `held` is 1, neither weights nor moments change.

    The optimizer's kernel reads the flag on the device, by the mechanism of the fp16 scaler.
    """
    optimizer.grad_scale, optimizer.found_inf = None, held  # type: ignore[attr-defined]
    optimizer.step()


def load_moments(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load the state of an optimizer without its settings; a resumed run uses the settings of its config."""
    settings = [{name: value for name, value in g.items() if name != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


class AveragedModel(Generic[Model]):
    """A copy of a model whose weights are exponential moving averages of the original's.

    Codebooks and buffers are copied, not averaged (reason: `smalti.quantizers.vector.Codebook`). A moving-average
    codebook already is an average over batches, and its counts and sums fit no other codebook. The averaged encoder
    lags behind the codebook; the lag shrinks with the learning rate. All other embeddings, such as those of tokens and
    classes in a prior, are averaged.

    模型的副本，其权重是原模型权重的指数滑动平均；码本与缓冲区直接复制。
    """

    def __init__(self, model: Model, decay: float):
        """Start from a copy of `model`.

        Args:
            model: the trained model; it is not changed.
            decay: fraction of the average kept per step, from 0 (no averaging) to below 1.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay: got {decay}, expected at least 0 and below 1")
        self.decay = decay
        self.model: Model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: Model, step: int, bad: Float[Tensor, ""] | None = None) -> None:
        """Update the average with the weights of `model` after `step` (1, 2, ...) steps.

        Args:
            model: the trained model.
            step: completed steps.
            bad: if 1, the average does not change, and codebooks and buffers of `model` are restored to their values
                at the last update. None: as 0.
        """
        new_weight = 1 - min(self.decay, (1 + step) / (10 + step))
        (averages, weights), (copies, tensors) = self._pairs(model)
        if bad is not None:
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight, (new_weight * (1 - bad)).to(average.dtype))
        elif averages:
            torch._foreach_lerp_(averages, weights, new_weight)
        if copies and bad is not None:
            torch._foreach_copy_(tensors, [torch.where(bad > 0, a, b) for a, b in zip(copies, tensors, strict=True)])
        if copies:
            torch._foreach_copy_(copies, tensors)

    def _pairs(self, model: Model) -> tuple[Pairs, Pairs]:
        """Pairs of tensors, here and in `model`: those to average, and those to copy.

        Lists allow one call for all tensors: a few kernels on a GPU instead of hundreds.
        """
        codebooks = {id(module.weight) for module in model.modules() if isinstance(module, Codebook)}
        averaged: Pairs = ([], [])
        copied: Pairs = (list(self.model.buffers()), list(model.buffers()))
        for average, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
            kind = averaged if parameter.requires_grad and id(parameter) not in codebooks else copied
            kind[0].append(average)
            kind[1].append(parameter)
        return averaged, copied

    def state_dict(self) -> dict[str, Any]:
        """Weights and buffers of the averaged copy."""
        return self.model.state_dict()
