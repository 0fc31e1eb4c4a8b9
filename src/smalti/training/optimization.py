"""How weights move: the optimizer, what it leaves undecayed, and the learning rate of every step.

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with a linear warm-up and a cosine (arXiv 1608.03983). The learning
rate is a function of the step number alone, so there is no scheduler whose state could be lost on resume.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

MOST_IMAGES = 2**20
"""Largest batch; a larger one is a slip of the hand that no memory holds."""


@dataclass(frozen=True)
class OptimizationConfig:
    """How long and how fast to learn."""

    steps: int = 10_000
    """Number of optimizer steps."""
    batch_size: int = 32
    """Images a step, over all processes and pieces together."""
    accumulate: int = 1
    """Pieces in which each process works through its images of a step, one after the other, to save memory."""
    lr: float = 1e-3
    """Highest learning rate, reached at the end of the warm-up."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0."""
    min_lr_ratio: float = 0.02
    """Learning rate of the last step, as a fraction of lr; a cosine leads down to it."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW; norms, biases and codebooks are exempt."""
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
        expect(0 <= self.min_lr_ratio <= 1, "min_lr_ratio", self.min_lr_ratio, "0 to 1")
        expect(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "at least 0")
        expect(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers of at least 0 and below 1")
        expect(self.grad_clip > 0, "grad_clip", self.grad_clip, "a number above 0 (inf: no clipping)")
        expect(self.on_non_finite in ("stop", "skip"), "on_non_finite", self.on_non_finite, "stop or skip")
        expect(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "at least 0 and below 1")


def learning_rate(config: OptimizationConfig, step: int) -> float:
    """Learning rate of the step that follows `step` completed ones: linear warm-up, then a cosine to lr * min_lr_ratio.

    >>> config = OptimizationConfig(steps=1000, lr=1.0, warmup_steps=100, min_lr_ratio=0.1)
    >>> [round(learning_rate(config, step), 3) for step in (0, 99, 999)]
    [0.01, 1.0, 0.1]
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, config.steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
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

    Decay pulls a weight toward 0. That restrains matrices and convolution kernels, whose scale a norm can make up for.
    It is wrong for the rest: a norm's scale belongs near 1, a bias near wherever its data is, and a code where the
    latents are. A rarely chosen code gets few gradients to pull it back, so decay would take it to 0, where it dies.
    """
    codebooks = codebook_parameters(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decays = [parameter.dim() >= 2 and id(parameter) not in codebooks for parameter in trainable]
    return [
        {"params": [p for p, d in zip(trainable, decays, strict=True) if d], "weight_decay": weight_decay},
        {"params": [p for p, d in zip(trainable, decays, strict=True) if not d], "weight_decay": 0.0},
    ]


def codebook_parameters(model: nn.Module) -> set[int]:
    """`id` of every parameter that is a table of vectors to look up; quantizers keep theirs in `nn.Embedding`."""
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


def build_optimizer(model: nn.Module, config: OptimizationConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of a model that already is on its device; fused, one kernel a group."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def expect(right: bool, name: str, value: object, allowed: str) -> None:
    """Refuse a setting that is not right, in the words of the house."""
    if not right:
        raise ValueError(f"{name}: got {value}, expected {allowed}")
