"""How weights move: the optimizer, what it leaves undecayed, the learning rate of every step, and the average.

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with a linear warm-up and a cosine (arXiv 1608.03983). The learning
rate is a function of the step number alone, so there is no scheduler whose state could be lost on resume.

The average is a second copy of the model that follows the trained one slowly and is better than it. Source: Polyak and
Juditsky 1992; the exponential form with a decay that rises, min(decay, (1 + t) / (10 + t)), as in TensorFlow's
ExponentialMovingAverage. The average is what a run saves; the trained weights live on in checkpoints.
"""

import copy
import math
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.quantizers.sim_vq import CodeTransform
from smalti.quantizers.vector import Codebook

Model = TypeVar("Model", bound=nn.Module)
Pairs = tuple[list[Tensor], list[Tensor]]

MOST_IMAGES = 2**20
"""Largest batch; a larger one is a slip of the hand that no memory holds."""


@dataclass(frozen=True)
class OptimizationConfig:
    """How long and how fast to learn."""

    steps: int = 10_000
    """Number of optimizer steps."""
    batch_size: int = 32
    """Images per step, over all processes and pieces together."""
    accumulate: int = 1
    """Pieces in which each process works through its images of a step, one after the other, to save memory."""
    lr: float = 1e-3
    """Highest learning rate, reached at the end of the warm-up."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0."""
    decay_steps: int | None = None
    """Last steps, over which the learning rate falls; before them it stays at lr, and a run can be resumed with more
    steps. null: all steps after the warm-up."""
    min_lr_ratio: float = 0.02
    """Learning rate of the last step, as a fraction of lr; a cosine leads down to it."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW, of the kernels of linear and convolutional layers; all else is exempt."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of AdamW's two moving averages."""
    grad_clip: float = 1.0
    """Largest norm of the gradient of all weights together; longer ones are shortened to it. inf: never."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or the gradient is NaN or infinite: stop the run, or skip the batch and count it."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are what is saved and used; 0: the last weights. It rises to this value over
    the first steps."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        expect(self.batch_size <= MOST_IMAGES, "batch_size", self.batch_size, f"at most {MOST_IMAGES}")
        expect(0 < self.lr < math.inf, "lr", self.lr, "a number above 0")
        expect(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "at least 0")
        expect(self.decay_steps is None or self.decay_steps >= 0, "decay_steps", self.decay_steps, "null or at least 0")
        expect(0 <= self.min_lr_ratio <= 1, "min_lr_ratio", self.min_lr_ratio, "0 to 1")
        expect(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "at least 0")
        expect(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers of at least 0 and below 1")
        expect(self.grad_clip > 0, "grad_clip", self.grad_clip, "a number above 0 (inf: no clipping)")
        expect(self.on_non_finite in ("stop", "skip"), "on_non_finite", self.on_non_finite, "stop or skip")
        expect(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "at least 0 and below 1")


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
    """Images that a process works through at once.

    Raises:
        ValueError: the batch cannot be cut into equal pieces.
    """
    pieces = processes * config.accumulate
    allowed = f"a multiple of {pieces} (processes {processes} x accumulate {config.accumulate})"
    expect(config.batch_size % pieces == 0, "batch_size", config.batch_size, allowed)
    return config.batch_size // pieces


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The trainable parameters of a model in two groups, with and without weight decay.

    Decay pulls a weight toward 0. That restrains the kernels of linear and convolutional layers, whose scale a norm can
    make up for. It is wrong for all else: a norm's scale belongs near 1, a bias near wherever its data is, a
    temperature near what it regulates, and what stands for a token, a position or a code where learning put it.
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
    """A state of `build_optimizer`, saved while every matrix decayed that was no embedding, for groups as they are now.

    Args:
        saved: the optimizer's `state_dict`.
        model: whose weights it moves.
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
    """AdamW over the trainable parameters of a model that already is on its device; fused, one kernel a group."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def step_unless(optimizer: torch.optim.Optimizer, held: Float[Tensor, ""]) -> None:
    """One step of a fused optimizer, which changes neither weights nor moments where `held` is 1.

    The optimizer's kernel reads the flag itself, on the device: it is the way in which a scaler of fp16 holds it.
    """
    optimizer.grad_scale, optimizer.found_inf = None, held  # type: ignore[attr-defined]
    optimizer.step()


def load_moments(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Read the state of an optimizer, but for its settings: a resumed run has those of its own config."""
    settings = [{name: value for name, value in g.items() if name != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


class AveragedModel(Generic[Model]):
    """A copy of a model whose weights are exponential moving averages of the original's.

    Codebooks (`smalti.quantizers.vector.Codebook`, which says why) and buffers are copied, not averaged. Nor would
    there be noise to remove: a moving-average codebook is an average over batches already, and its counts and sums fit
    no other codebook. What remains is that the averaged encoder lags behind the codebook; as the learning rate falls,
    so does the lag. Every other table of vectors, such as the words and classes of a prior, is averaged.
    """

    def __init__(self, model: Model, decay: float):
        """Start from a copy of `model`.

        Args:
            model: what to follow; it stays untouched.
            decay: share of the average that a step keeps, 0 (always the last weights) to below 1.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay: got {decay}, expected at least 0 and below 1")
        self.decay = decay
        self.model: Model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: Model, step: int, bad: Float[Tensor, ""] | None = None) -> None:
        """Take in the weights of `model` after `step` (1, 2, ...) steps.

        Args:
            model: what to follow.
            step: completed steps.
            bad: where it is 1, the average stays, and `model` gets back what its forward passes since the last update
                may have moved: codebooks and buffers. None: nowhere.
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
        """The tensors that are averaged, and those that are copied: here and in `model`.

        As lists, so that one call takes them all: a few kernels on a GPU, not one for each of hundreds of tensors.
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


def expect(right: bool, name: str, value: object, allowed: str) -> None:
    """Refuse a setting that is not right, in the words of the house."""
    if not right:
        raise ValueError(f"{name}: got {value}, expected {allowed}")
