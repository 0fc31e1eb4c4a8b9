"""Train a prior on a token data set: from tokens to a model that generates new tokens.

The loop is `smalti.training.loop`. The code around it (run directory, resuming, signals, logs, checkpoints) is
`smalti.training.session`. The run directory holds the best weights, for `smalti.load_prior` and `smalti sample`, and
PRIOR/tokenizer, to decode the samples. This file has the parts specific to priors: tokens, held-out images, quality.

Some of the images are held out, with all their views. Quality is the negative loss on them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smalti.data import TokenBatch, TokenDataset
from smalti.distributed import on_main, process_count, process_rank
from smalti.jobs.train_config import check_session, plain_settings
from smalti.ops.device import Precision
from smalti.priors import Prior, TokenLayout
from smalti.quantizers import MultiScaleQuantizer
from smalti.tokenizers import Tokenizer
from smalti.training import (
    OptimizationConfig,
    PriorObjective,
    Quality,
    Reporter,
    Runtime,
    StepResult,
    Task,
    open_runtime,
    piece_size,
    prior_line,
    run_session,
    start_state,
    validation_nats,
)
from smalti.zoo import build_prior, open_prior, open_tokenizer

TOKENIZER = "tokenizer"
VALIDATION_ROWS = 2048
"""Largest number of held-out rows that measure a checkpoint."""


@dataclass(frozen=True)
class TrainPriorConfig:
    """Train a prior, a generator of tokens, on a token data set."""

    tokens: str
    """Token data set from smalti tokenize."""
    out: str
    """Run directory to write."""
    prior: str = "auto"
    """Name of the prior in smalti.zoo; auto: next-scale-small for several scales, next-token-small for one."""
    prior_args: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of the prior to change: depth, width, num_heads, class_dropout, ..."""
    optimization: OptimizationConfig = field(
        default_factory=lambda: OptimizationConfig(lr=5e-4, batch_size=64, weight_decay=0.05, betas=(0.9, 0.95))
    )
    """Optimization."""
    validation: float = 0.05
    """Fraction of the images that is held out, to detect overfitting."""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass: a third more time, far less memory."""
    sharded: bool = False
    """Shard the weights over the processes of the launch (FSDP), for priors too large for one device."""
    precision: Precision = "auto"
    """Number format of forward passes; auto: bf16 if the hardware supports it."""
    seed: int = 0
    """Seed of initial weights, held-out images and order of the training data."""
    device: str = "auto"
    """Device to compute on: cpu, cuda, cuda:1, ...; auto: cuda if available."""
    log_every: int = 10
    """Steps between lines of the log."""
    checkpoint_every: int = 500
    """Steps between checkpoints; each measures the loss on the held-out images."""
    resume: bool = False
    """Continue from the last checkpoint in the run directory."""
    force: bool = False
    """Replace an existing run in the run directory."""

    def __post_init__(self) -> None:
        check_session(self)
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation: got {self.validation}, expected at least 0 and below 1")


@dataclass(frozen=True)
class TrainPriorResult:
    """The result of a run."""

    out: str
    """The run directory."""
    step: int
    """Completed steps."""
    steps: int
    """Requested steps."""
    bits_per_token: float
    """Loss of the delivered weights on the held-out images, in bits per token; NaN if no image was held out."""
    bits_per_pixel: float
    """The same loss in bits per pixel."""
    predicted: str
    """What the loss is a mean over: see `Prior.predicted`."""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run early."""
        return self.step < self.steps


def train_prior(config: TrainPriorConfig, reporter: Reporter | None = None) -> TrainPriorResult:
    """Train, or resume training.

    Args:
        config: all settings of the run.
        reporter: receives the progress; None: no reports. With several processes, only the first one reports.

    Raises:
        FileNotFoundError: no token data set, or nothing to resume.
        FileExistsError: the run directory is not empty, and neither `resume` nor `force` is set; or another process
            trains there.
        ValueError: a prior that cannot model these tokens; DataError if the tokens can no longer be read,
            NonFiniteLossError if the loss diverges.
    """
    runtime = open_runtime(config.device, config.precision, sharded=config.sharded)
    task, end = run_session(
        config, plain_settings(config), runtime, reporter, lambda checkpoint: _PriorTask(config, runtime, checkpoint)
    )
    bits = math.nan if end.best_quality is None else -end.best_quality / math.log(2)
    per_pixel = bits * task.tokens_per_pixel
    steps, predicted = config.optimization.steps, task.state.model.predicted
    return TrainPriorResult(config.out, task.state.step, steps, bits, per_pixel, predicted)


class _PriorTask(Task):
    """A prior that learns from tokens."""

    deliver_best = True

    def __init__(self, config: TrainPriorConfig, runtime: Runtime, checkpoint: Path | None):
        """
        Args:
            config: all settings of the run.
            runtime: device, number format, processes.
            checkpoint: folder of the saved prior; None: a new prior.
        """
        self.config, self.runtime = config, runtime
        self.piece = piece_size(config.optimization, process_count())
        on_main(lambda: len(TokenDataset(config.tokens)))  # only the first process unpacks the shards
        self.dataset = TokenDataset(config.tokens)
        self.training, self.held_out = split_rows(self.dataset, config.validation, config.seed)
        tokenizer = self._tokenizer()
        self.other_models = {TOKENIZER: tokenizer}
        prior = open_prior(checkpoint) if checkpoint else new_prior(config, self.dataset, tokenizer)
        prior.layout.require(layout_of(self.dataset), f"tokens {config.tokens}")
        prior.gradient_checkpointing = config.gradient_checkpointing
        self.tokens_per_pixel = prior.layout.num_tokens / math.prod(prior.layout.image_size)
        super().__init__(start_state(prior, config.optimization, runtime), PriorObjective(prior, runtime))

    def introduction(self) -> list[str]:
        """One line about prior and tokens."""
        prior, step, rows = self.state.model, self.state.step, len(self.dataset)
        weights = sum(p.numel() for p in prior.parameters() if p.requires_grad) / 1e6
        return [
            f"{f'resuming after step {step}' if step else 'training'}: {type(prior).__name__}, "
            f"{weights:.1f} M parameters, {self.dataset.num_tokens} tokens per row, "
            f"vocabulary size {prior.layout.vocab_size}, {prior.num_classes or 'no'} classes; "
            f"{rows} rows, {len(self.held_out)} of them held out"
        ]

    def batches(self) -> Iterator[TokenBatch]:
        """This process's part of every batch, from the next step on; images without a label get that of no class."""
        start = self.state.step * self.config.optimization.accumulate
        batches = self.dataset.batches(
            self.piece, self.config.seed, start, process_rank(), process_count(), rows=self.training
        )
        return (self._labelled(batch) for batch in batches)

    def log_line(self, result: StepResult, images_per_second: float) -> dict[str, Any]:
        """See `prior_line`."""
        return prior_line(result, images_per_second)

    def quality(self) -> Quality:
        """The negative loss of the averaged prior on the held-out rows, in nats per token; None without such rows."""
        rows = self.held_out[:VALIDATION_ROWS]
        pieces = (rows[i : i + self.piece] for i in range(0, len(rows), self.piece))
        batches = (self._labelled(self.dataset.batch(piece)) for piece in pieces)
        nats = validation_nats(self.state.averaged.model, batches, self.runtime) if len(rows) else math.nan
        if math.isnan(nats):
            return Quality(None)
        bits, step = nats / math.log(2), self.state.step
        per_pixel = bits * self.tokens_per_pixel
        line = {"step": step, "validation_bits_per_token": bits, "validation_bits_per_pixel": per_pixel}
        return Quality(-nats, line, f"step {step}, held-out images: {bits:.3f} bits per {self.state.model.predicted}")

    def _tokenizer(self) -> Tokenizer:
        storage = self.dataset.storage
        if storage.local is None:
            raise ValueError(f"tokens: got {self.config.tokens}, expected a local folder; copy the set here first")
        return open_tokenizer(storage.local / TOKENIZER)

    def _labelled(self, batch: TokenBatch) -> TokenBatch:
        none = self.state.model.num_classes
        return TokenBatch(batch.tokens, torch.where(batch.labels < 0, none, batch.labels))


def layout_of(dataset: TokenDataset) -> TokenLayout:
    """The token layout of a token data set."""
    manifest = dataset.manifest
    assert manifest.grids is not None, "TokenDataset refuses sets of several grids"
    size = manifest.image_size
    assert size is not None, "images of one grid and several sizes"
    return TokenLayout.of(manifest.vocab_size, manifest.grids, size, manifest.fingerprint)


def new_prior(config: TrainPriorConfig, dataset: TokenDataset, tokenizer: Tokenizer) -> Prior:
    """A new prior for the tokens of a data set."""
    name = config.prior
    if name == "auto":
        many = isinstance(tokenizer.quantizer, MultiScaleQuantizer)
        name = "next-scale-small" if many else "next-token-small"
    names = dataset.manifest.class_names
    return build_prior(
        name, layout_of(dataset), dataset.num_classes, tokenizer.quantizer, class_names=names, **config.prior_args
    )


def split_rows(dataset: TokenDataset, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training rows and held-out rows; all views of an image are in the same part."""
    views = len(dataset) // max(1, dataset.manifest.images)
    images = len(dataset) // views
    count = min(round(fraction * images), images - 1)
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,))).permutation(images)
    sides = np.sort(order[count:]), np.sort(order[:count])
    training, held_out = ((side[:, None] * views + np.arange(views)).reshape(-1) for side in sides)
    return training, held_out
