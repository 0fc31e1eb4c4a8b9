"""Train a tokenizer on images: from a config to a run directory.

The loop is `smalti.training.loop`. The code around it (run directory, resuming, signals, logs, checkpoints) is
`smalti.training.session`. This file has the parts specific to tokenizers: model, images, losses, sample pictures and
quality.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.data import Batch, open_images, ordered_batches, training_batches
from smalti.data.loader import Pixels, choose_workers
from smalti.distributed import all_gather, on_main, process_count, process_rank
from smalti.jobs.train_config import TrainConfig, plain_settings
from smalti.jobs.train_scales import fit_scales
from smalti.losses import LossTable, build_network_losses
from smalti.metrics import mean_color, psnr
from smalti.ops.device import DTYPES
from smalti.tokenizers import Tokenizer
from smalti.training import (
    GANTrainer,
    Quality,
    Reporter,
    Runtime,
    StepResult,
    Task,
    TokenizerObjective,
    open_runtime,
    piece_size,
    read_settings,
    reconstruction_grid,
    run_session,
    start_state,
    take_weights,
    tokenizer_line,
)
from smalti.zoo import DEFAULT, build, open_tokenizer

SAMPLES = 8
"""Number of images in a sample grid: the first ones of the data."""
VALIDATION_BATCHES = 8
"""Largest number of batches of `SAMPLES` images that measure the quality of a checkpoint."""
BEST_DECIBELS = 100.0
"""Value that replaces the infinite PSNR of an exact reconstruction."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a run."""

    run: str
    """The run directory."""
    step: int
    """Completed steps."""
    steps: int
    """Requested steps."""
    last: Mapping[str, Any]
    """The last line of the log, see `smalti.training.tokenizer_line`; empty if the log is empty."""
    unreadable: str
    """One line with the names of the files that could not be read; empty if all were read."""
    skipped: int = 0
    """Batches skipped because a loss or gradient was not finite."""
    best: str = ""
    """The checkpoint with the best averaged model; empty if the quality of none was measured."""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run early."""
        return self.step < self.steps


def train(config: TrainConfig, reporter: Reporter | None = None) -> TrainResult:
    """Train, or resume training.

    Args:
        config: all settings of the run.
        reporter: receives the progress; None: no reports. With several processes, only the first one reports.

    Raises:
        ValueError: a bad setting, or no usable image; DataError if the images can no longer be read, NonFiniteLossError
            if the loss diverges.
        FileExistsError: the run directory is not empty, and neither `resume` nor `force` is set; or another process
            trains there.
        FileNotFoundError: no data, or nothing to resume.
        OSError: the disk is full.
    """
    runtime = open_runtime(config.device, config.precision, config.channels_last, config.compile, config.distributed)
    fitted = ""
    if not (config.resume and _is_recorded(config)):
        config, fitted = fit_scales(config)
    task, end = run_session(
        config,
        plain_settings(config),
        runtime,
        reporter,
        lambda checkpoint: _TokenizerTask(config, runtime, checkpoint, fitted),
    )
    for unreadable in all_gather(task.source.unreadable):
        task.source.unreadable.update(unreadable)
    return TrainResult(
        run=config.out,
        step=task.state.step,
        steps=config.optimization.steps,
        last=end.line,
        unreadable=task.source.unreadable_summary(),
        skipped=task.state.skipped,
        best=str(end.best or ""),
    )


def build_model(config: TrainConfig) -> tuple[Tokenizer, str]:
    """The model before its first step, and a text that says which weights came from `init_from`."""
    source = open_tokenizer(config.init_from) if config.init_from else None
    if source is not None and config.model == "auto":
        return source, "encoder, quantizer, decoder taken"
    model = build(DEFAULT if config.model == "auto" else config.model, **config.model_args)
    return model, "" if source is None else "; ".join(map(str, take_weights(model, source)))


def _is_recorded(config: TrainConfig) -> bool:
    """Whether the run to resume has exactly these model arguments; then its scales are kept."""
    return (read_settings(config.out) or {}).get("model_args") == config.model_args


class _TokenizerTask(Task):
    """A tokenizer that learns from images."""

    def __init__(self, config: TrainConfig, runtime: Runtime, checkpoint: Path | None, fitted: str):
        """
        Args:
            config: all settings of the run.
            runtime: device, number format, processes.
            checkpoint: folder of the saved model; None: a new model.
            fitted: the message of `fit_scales`; empty: none.
        """
        self.config, self.runtime, self.sample_every = config, runtime, config.sample_every
        self.piece = piece_size(config.optimization, process_count())  # refuses a batch size that cannot be divided
        model, taken = (open_tokenizer(checkpoint), "") if checkpoint else build_model(config)
        self.remarks = [f"weights of {config.init_from}: {taken}"] * bool(taken) + [fitted] * bool(fitted)
        self.source = open_images(config.data, channels=model.image_channels)
        self.samples = next(ordered_batches(self.source, config.input, SAMPLES)).image
        self.validation = self._validation_images(model.image_channels)
        self.losses = losses = _losses(config, runtime.device)
        state, gan = start_state(model, config.optimization, runtime), None
        if losses.weight("adversarial"):
            gan = GANTrainer(config.adversarial, losses, state, config.optimization, runtime)
        _rehearse(state.averaged.model, losses, runtime.place(self.samples[:1]))
        super().__init__(state, TokenizerObjective(model, losses, runtime), gan)

    def introduction(self) -> list[str]:
        """Model, data and device; weights taken from another model; changed scales."""
        model, step, runtime, images = self.state.model, self.state.step, self.runtime, len(self.source)
        weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        how = [runtime.device.type, next(name for name, dtype in DTYPES.items() if dtype == runtime.dtype)]
        how += [f"{process_count()} processes"] * (process_count() > 1)
        how += ["channels last"] * runtime.channels_last + ["compiled"] * runtime.compile
        begin = f"resuming after step {step}" if step else "training"
        name = self.config.model if self.config.model != "auto" else self.config.init_from or DEFAULT
        return [
            f"{begin}: {name}, {weights:.1f} M parameters, {model.vocab_size} codes, stride {model.stride}; "
            f"{images} image{'s' * (images != 1)}; {', '.join(how)}",
            *self.remarks,
        ]

    def batches(self) -> Iterator[Batch]:
        """This process's part of every batch, from the next step on; refused if most images cannot be read."""
        config = self.config
        start = self.state.step * config.optimization.accumulate
        pixels: Pixels = "pinned" if self.runtime.device.type == "cuda" else "uint8"
        for piece in training_batches(
            self.source, config.input, self.piece, config.seed, start,
            choose_workers(config.workers, self.runtime.device),
            rank=process_rank(), world=process_count(), pixels=pixels,
        ):  # fmt: skip
            if len(self.source.unreadable) > len(self.source) / 2:
                raise ValueError(f"data: most images cannot be read: {self.source.unreadable_summary()}")
            yield piece

    def log_line(self, result: StepResult, images_per_second: float) -> dict[str, Any]:
        """See `tokenizer_line`."""
        return tokenizer_line(result, self.state.model.vocab_size, self.state.skipped, images_per_second)

    def sample(self) -> Tensor:
        """Originals above the reconstructions of the averaged model."""
        return reconstruction_grid(self.state.averaged.model, self.runtime.place(self.samples))

    def quality(self) -> Quality:
        """Mean PSNR in dB over the validation images, in the first process; at the end with a note if it is too low.

        With an adversarial loss, see `_feature_quality`.
        """
        return on_main(self._quality)

    @torch.no_grad()
    def _quality(self) -> Quality:
        model, steps = self.state.averaged.model, self.config.optimization.steps
        images = [self.runtime.place(image) for image in self.validation]
        reconstructions = [model(image).reconstruction for image in images]
        found = _mean_psnr(self.validation, [each.cpu() for each in reconstructions])
        baseline = _mean_psnr(self.validation, map(mean_color, self.validation))
        value = found if self.gan is None else self._feature_quality(images, reconstructions)
        if self.state.step < steps or found >= baseline:
            return Quality(value)
        note = f"after {steps} steps PSNR is {found:.2f} dB, below the {baseline:.2f} dB of one mean colour per image: "
        return Quality(value, note=note + "train for more steps")

    def _feature_quality(self, images: list[Tensor], reconstructions: list[Tensor]) -> float | None:
        """Minus the mean distance by the pretrained networks of the loss, once the adversarial loss has all its weight.

        None before that, and without such a network: by PSNR the blurred images of the first steps would be the best.
        """
        if self.config.adversarial.ramp(self.state.step - 1, self.config.optimization.steps) < 1:
            return None
        distances = [self.losses.feature_distance(*pair) for pair in zip(reconstructions, images, strict=True)]
        measured = [float(distance) for distance in distances if distance is not None]
        return -sum(measured) / len(measured) if measured else None

    def data_notes(self) -> dict[str, Any]:
        """Number and hash of the images: the order of an epoch depends on them."""
        keys = "\n".join(self.source.key(index) for index in range(len(self.source)))
        return {"images": len(self.source), "images_sha256": hashlib.sha256(keys.encode()).hexdigest()}

    def _validation_images(self, channels: int) -> list[Tensor]:
        if not self.config.validation:
            return [self.samples]
        batches = ordered_batches(open_images(self.config.validation, channels=channels), self.config.input, SAMPLES)
        return [batch.image for batch in islice(batches, VALIDATION_BATCHES)]


def _mean_psnr(images: list[Tensor], reconstructions: Iterable[Tensor]) -> float:
    """Mean PSNR in dB of the reconstructions of all images."""
    decibels = [psnr(*pair) for pair in zip(reconstructions, images, strict=True)]
    return float(torch.cat(decibels).clamp(max=BEST_DECIBELS).mean())


def _losses(config: TrainConfig, device: torch.device) -> LossTable:
    """The table of loss weights, with the pretrained networks that it needs."""
    networks = build_network_losses(config.loss_weights, config.pretrained or None, download=config.download)
    return LossTable(config.loss_weights, {name: loss.to(device) for name, loss in networks.items()})


@torch.no_grad()
def _rehearse(model: Tokenizer, losses: LossTable, image: Tensor) -> None:
    """Pass one image through model and losses, so that errors appear before the run directory is made."""
    losses(image, model(image))
