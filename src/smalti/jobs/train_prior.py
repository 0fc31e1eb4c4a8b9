"""Train a prior on a token data set: from tokens to a model that draws new ones.

PRIOR/config.json, model.safetensors    the averaged weights at their best: what `smalti.load_prior` and sample take
PRIOR/tokenizer/                        the tokenizer, so that samples can be decoded
PRIOR/train.yaml                        the complete config, itself a recipe
PRIOR/log.jsonl, tensorboard/           the numbers of every few steps
PRIOR/checkpoints/NNNNNN/               everything to go on from there: the newest, and the best

A part of the images is held out; all views of one image are on the same side. Quality is minus the loss on them.
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from smalti.data import TokenBatch, TokenDataset
from smalti.formats.atomic import replace_file
from smalti.jobs.train_config import plain_settings
from smalti.ops.device import Precision
from smalti.ops.processes import process_count, process_rank
from smalti.priors import Prior, TokenLayout
from smalti.quantizers import MultiScaleQuantizer
from smalti.tokenizers import Tokenizer
from smalti.training import (
    OptimizationConfig,
    PriorStep,
    Reporter,
    ResumePoint,
    RunFolder,
    RunRecord,
    Runtime,
    Silent,
    SkippedStep,
    StopRequest,
    any_process,
    begin_random_numbers,
    best_checkpoint,
    check_whole,
    choose_runtime,
    deliver,
    join_processes,
    join_sharded,
    launched_processes,
    load_checkpoint,
    on_main,
    own_random_numbers,
    piece_size,
    random_state,
    read_numbers,
    share,
    start_state,
    train_prior_steps,
    validation_nats,
)
from smalti.zoo import build_prior, open_prior, open_tokenizer

__all__ = ["TrainPriorConfig", "TrainPriorResult", "train_prior"]

TOKENIZER = "tokenizer"
VALIDATION_ROWS = 2048
"""Held-out rows that measure a checkpoint, at most."""


@dataclass(frozen=True)
class TrainPriorConfig:
    """Train a prior on a token data set."""

    tokens: str
    """The token data set, as smalti tokenize makes it."""
    out: str
    """The folder to make."""
    prior: str = "auto"
    """Which prior, by its name in smalti.zoo; auto: next-scale-small for several scales, next-token-small for one."""
    prior_args: dict[str, Any] = field(default_factory=dict)
    """Sizes of the prior to change: depth, width, num_heads, class_dropout, ..."""
    optimization: OptimizationConfig = field(
        default_factory=lambda: OptimizationConfig(lr=5e-4, batch_size=64, weight_decay=0.05, betas=(0.9, 0.95))
    )
    """How long and how fast to learn."""
    validation: float = 0.05
    """Share of the images that is held out, to see when the prior begins to learn the others by heart."""
    gradient_checkpointing: bool = False
    """Compute each block a second time in the backward pass: a third more time, far less memory."""
    sharded: bool = False
    """Cut the weights over the processes of the launch (FSDP), for priors that are too large for one device."""
    precision: Precision = "auto"
    """Number format of forward passes; auto: bf16 where the hardware multiplies it."""
    seed: int = 0
    """Decides initial weights, what is held out and the order of the tokens."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: cuda if there is one."""
    log_every: int = 10
    """Steps between lines of the log."""
    checkpoint_every: int = 500
    """Steps between checkpoints, each with the loss on the held-out images."""
    resume: bool = False
    """Go on from the last checkpoint in the folder."""
    force: bool = False
    """Replace the run that is in the folder."""

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation: got {self.validation}, expected at least 0 and below 1")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, expected at least 0")
        if self.resume and self.force:
            raise ValueError("resume, force: got both, expected one: go on with the run in the folder, or replace it")


@dataclass(frozen=True)
class TrainPriorResult:
    """How a run ended."""

    out: str
    """The folder."""
    step: int
    """Completed steps."""
    steps: int
    """Steps that were asked for."""
    bits_per_token: float
    """Loss on the held-out images of what was delivered; NaN where nothing was held out."""
    bits_per_pixel: float
    """The same, over the pixels of an image."""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run early."""
        return self.step < self.steps


def train_prior(config: TrainPriorConfig, reporter: Reporter | None = None) -> TrainPriorResult:
    """Train, or go on with training.

    Args:
        config: everything.
        reporter: hears of the progress; default: nobody. Of several processes only the first one's does.

    Raises:
        FileNotFoundError: no token data set; nothing to resume.
        FileExistsError: the folder is not empty, and neither `resume` nor `force` is set; or another process trains
            there.
        ValueError: a prior that cannot model these tokens; NonFiniteLossError when the loss diverges.
    """
    runtime = _runtime(config)
    reporter = reporter if reporter is not None and process_rank() == 0 else Silent()
    with (
        closing(RunFolder(config.out)) as folder,
        own_random_numbers(config.seed, runtime.device),
        runtime.fast_products(),
    ):
        return _Run(config, reporter, runtime, folder).go()


def _runtime(config: TrainPriorConfig) -> Runtime:
    """One process, one of several, or one of several that hold the prior together."""
    if config.sharded:
        return join_sharded(config.device, config.precision)
    choose = join_processes if launched_processes() > 1 else choose_runtime
    return choose(config.device, config.precision, False)


class _Run:
    """A run from its first step, or the one after a checkpoint, to its end."""

    def __init__(self, config: TrainPriorConfig, reporter: Reporter, runtime: Runtime, folder: RunFolder):
        self.config, self.reporter, self.runtime, self.folder = config, reporter, runtime, folder
        settings = plain_settings(config)
        point = on_main(lambda: self._claim(settings))
        checkpoint = point.checkpoint if point else None
        self.piece = piece_size(config.optimization, process_count())
        on_main(lambda: len(TokenDataset(config.tokens)))  # the first process alone unpacks the shards
        self.dataset = TokenDataset(config.tokens)
        self.training, self.held_out = split_rows(self.dataset, config.validation, config.seed)
        tokenizer = self._tokenizer()
        prior = open_prior(checkpoint) if checkpoint else new_prior(config, self.dataset, tokenizer)
        self._check(prior)
        prior.gradient_checkpointing = config.gradient_checkpointing
        self.state = start_state(prior, config.optimization, runtime)
        random = load_checkpoint(checkpoint, self.state) if checkpoint else []
        self.record: RunRecord | None = None
        on_main(lambda: self._open(settings, tokenizer, point))
        begin_random_numbers(config.seed, random, runtime.device)
        self.whole = runtime.shard(self.state)

    def go(self) -> TrainPriorResult:
        """The steps, and between them whatever is due."""
        config = self.config
        self.reporter.start(config.optimization.steps, self.state.step)
        try:
            with StopRequest() as stop:
                for result in train_prior_steps(
                    self.state, self._batches(), config.optimization, self.runtime, config.log_every
                ):
                    self._report(result)
                    stopping = any_process(stop.requested)
                    if stopping or self._due(config.checkpoint_every, result.step):
                        self._save()
                    if stopping:
                        break
        finally:
            self.reporter.close()
            if self.record is not None:
                self.record.close()
        return on_main(self._deliver_best)

    # ---- before ---------------------------------------------------------------------------------------------

    def _claim(self, settings: Mapping[str, Any]) -> ResumePoint | None:
        if self.config.resume:
            return self.folder.take_again(settings)
        self.folder.check_new(self.config.force)
        return None

    def _tokenizer(self) -> Tokenizer:
        storage = self.dataset.storage
        if storage.local is None:
            raise ValueError(f"tokens: {self.config.tokens} is not on this machine; copy it here to train on it")
        return open_tokenizer(storage.local / TOKENIZER)

    def _check(self, prior: Prior) -> None:
        """Refuse a prior that belongs to other tokens, before the first step."""
        prior.layout.require(layout_of(self.dataset), f"tokens {self.config.tokens}")

    def _open(self, settings: Mapping[str, Any], tokenizer: Tokenizer, point: ResumePoint | None) -> None:
        for line in self.folder.set_aside(point) if point else ():
            self.reporter.note(line)
        if point is None:
            self.folder.take_new(self.config.force)
            self.folder.clear()
            (self.folder.path / TOKENIZER).mkdir()
            deliver(tokenizer, self.folder.path / TOKENIZER)
        self.folder.tidy()
        self.folder.write_settings(settings)
        prior, rows = self.state.model, len(self.dataset)
        weights = sum(p.numel() for p in prior.parameters() if p.requires_grad) / 1e6
        self.reporter.note(
            f"{'training' if point is None else f'going on after step {self.state.step}'}: {type(prior).__name__}, "
            f"{weights:.1f} M weights, {self.dataset.num_tokens} tokens of {prior.layout.vocab_size}, "
            f"{prior.num_classes or 'no'} classes; {rows} rows, {len(self.held_out)} of them held out"
        )
        self.record = RunRecord(self.folder.path, self.state.step)

    # ---- during ---------------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[TokenBatch]:
        """This process's pieces from the next step on; images without a label get that of no class."""
        start = self.state.step * self.config.optimization.accumulate
        batches = self.dataset.batches(
            self.piece, self.config.seed, start, process_rank(), process_count(), rows=self.training
        )
        return (self._labelled(batch) for batch in batches)

    def _labelled(self, batch: TokenBatch) -> TokenBatch:
        none = self.state.model.num_classes
        return TokenBatch(batch.tokens, torch.where(batch.labels < 0, none, batch.labels))

    def _due(self, every: int, step: int) -> bool:
        return step == self.state.step and (step % every == 0 or step == self.config.optimization.steps)

    def _report(self, result: PriorStep | SkippedStep) -> None:
        if isinstance(result, SkippedStep):
            self.reporter.note(f"skipped a batch: {result.reason}")
        elif result.step == 1 or self._due(self.config.log_every, result.step):
            loss, grad_norm = read_numbers([result.loss, result.grad_norm])
            line = {
                "step": result.step,
                "loss": loss,
                "bits_per_token": loss / math.log(2),
                "lr": result.lr,
                "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
                "images_per_second": result.images / result.seconds,
            }
            self.reporter.measured(line)
            self._write(line)
        self.reporter.step(result.step)

    def _write(self, line: dict[str, Any]) -> None:
        if self.record is not None:
            self.record.add(line)

    def _save(self) -> None:
        """A checkpoint, with the loss on the held-out images."""
        for skipped in self.state.look(self.config.optimization, every=1):
            self._report(skipped)
        random = share(random_state(self.runtime.device))
        nats = self._validation()
        if not math.isnan(nats):
            bits = nats / math.log(2)
            per_pixel = bits * self._tokens_per_pixel()
            line = {"step": self.state.step, "validation_bits_per_token": bits, "validation_bits_per_pixel": per_pixel}
            self.reporter.note(f"step {self.state.step}, held-out images: {bits:.3f} bits a token")
            self._write(line)
        quality = None if math.isnan(nats) else -nats
        whole = self.whole()
        on_main(lambda: self.folder.save(whole, random, quality))

    def _validation(self) -> float:
        """Nats a token of the averaged prior on held-out rows; NaN where there are none."""
        rows = self.held_out[:VALIDATION_ROWS]
        if not len(rows):
            return math.nan
        pieces = (rows[i : i + self.piece] for i in range(0, len(rows), self.piece))
        batches = (self._labelled(self.dataset.batch(piece)) for piece in pieces)
        return validation_nats(self.state.averaged.model, batches, self.runtime)

    def _tokens_per_pixel(self) -> float:
        layout = self.state.model.layout
        return layout.num_tokens / math.prod(layout.image_size)

    # ---- after ----------------------------------------------------------------------------------------------

    def _deliver_best(self) -> TrainPriorResult:
        """Put the best checkpoint's averaged weights where sampling finds them."""
        best = best_checkpoint(self.folder.checkpoints)
        bits = math.nan
        if best is not None:
            for name in ("config.json", "model.safetensors"):
                with replace_file(self.folder.path / name, force=True) as temporary:
                    shutil.copyfile(best / name, temporary)
            quality = check_whole(best)["quality"]
            bits = math.nan if quality is None else -quality / math.log(2)
        steps = self.config.optimization.steps
        per_pixel = bits * self._tokens_per_pixel()
        return TrainPriorResult(self.config.out, self.state.step, steps, bits, per_pixel)


def layout_of(dataset: TokenDataset) -> TokenLayout:
    """What a prior needs to know of a token data set."""
    manifest = dataset.manifest
    assert manifest.grids is not None, "TokenDataset refuses others"
    size = manifest.image_size
    assert size is not None, "images of one grid and several sizes"
    return TokenLayout.of(manifest.vocab_size, manifest.grids, size, manifest.fingerprint)


def new_prior(config: TrainPriorConfig, dataset: TokenDataset, tokenizer: Tokenizer) -> Prior:
    """A fresh prior for the tokens of a data set."""
    name = config.prior
    if name == "auto":
        many = isinstance(tokenizer.quantizer, MultiScaleQuantizer)
        name = "next-scale-small" if many else "next-token-small"
    names = dataset.manifest.class_names
    return build_prior(
        name, layout_of(dataset), dataset.num_classes, tokenizer.quantizer, class_names=names, **config.prior_args
    )


def split_rows(dataset: TokenDataset, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out; all views of an image are on the same side."""
    views = len(dataset) // max(1, dataset.manifest.images)
    images = len(dataset) // views
    count = min(round(share * images), images - 1)
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,))).permutation(images)
    sides = np.sort(order[count:]), np.sort(order[:count])
    training, held_out = ((side[:, None] * views + np.arange(views)).reshape(-1) for side in sides)
    return training, held_out
