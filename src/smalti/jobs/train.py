"""Train a tokenizer on images: from a config to a run folder.

The loop is `smalti.training.loop`, and what goes on around it (the run folder, resuming, signals, logs, checkpoints) is
`smalti.training.session`. Here is what is particular to tokenizers: model, images, losses, sample pictures, quality.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.data import Batch, open_images, ordered_batches, training_batches
from smalti.data.loader import Pixels, choose_workers
from smalti.distributed import process_count, process_rank
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
    all_gather,
    on_main,
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

__all__ = ["TrainConfig", "TrainResult", "build_model", "plain_settings", "train"]

SAMPLES = 8
"""Pictures in a sample grid: the first of the data."""
VALIDATION_BATCHES = 8
"""How many batches of `SAMPLES` images measure the quality of a checkpoint, at most."""
BEST_DECIBELS = 100.0
"""What the PSNR of an exact reconstruction, which is infinite, counts as."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run: str
    """The run folder."""
    step: int
    """Completed steps."""
    steps: int
    """Steps that were asked for."""
    last: Mapping[str, Any]
    """The last line of the log, see `smalti.training.tokenizer_line`; empty if there was none."""
    unreadable: str
    """One line that names the files that could not be read; empty if there was none."""
    skipped: int = 0
    """Batches that were skipped because a loss or gradient was not finite."""
    best: str = ""
    """The checkpoint whose averaged model was best; empty if there is none."""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run early."""
        return self.step < self.steps


def train(config: TrainConfig, reporter: Reporter | None = None) -> TrainResult:
    """Train, or go on with training.

    Args:
        config: everything.
        reporter: hears of the progress; default: nobody. Of several processes only the first one's does.

    Raises:
        ValueError: a bad setting, no usable image; DataError when the images can no longer be read, NonFiniteLossError
            when the loss diverges.
        FileExistsError: the run folder is not empty, and neither `resume` nor `force` is set; or another process trains
            there.
        FileNotFoundError: no data; nothing to resume.
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
    """The model before its first step, and in words what it took from `init_from`."""
    source = open_tokenizer(config.init_from) if config.init_from else None
    if source is not None and config.model == "auto":
        return source, "encoder, quantizer, decoder taken"
    model = build(DEFAULT if config.model == "auto" else config.model, **config.model_args)
    return model, "" if source is None else "; ".join(map(str, take_weights(model, source)))


def _is_recorded(config: TrainConfig) -> bool:
    """Whether the run to resume has the very model arguments; whatever its scales, they stay."""
    return (read_settings(config.out) or {}).get("model_args") == config.model_args


class _TokenizerTask(Task):
    """A tokenizer that learns from images."""

    def __init__(self, config: TrainConfig, runtime: Runtime, checkpoint: Path | None, fitted: str):
        """
        Args:
            config: everything.
            runtime: device, number format, processes.
            checkpoint: where the model is; None: a new one.
            fitted: what `fit_scales` has to say; empty: nothing.
        """
        self.config, self.runtime, self.sample_every = config, runtime, config.sample_every
        self.piece = piece_size(config.optimization, process_count())  # refuses what cannot be cut
        model, taken = (open_tokenizer(checkpoint), "") if checkpoint else build_model(config)
        self.remarks = [f"weights of {config.init_from}: {taken}"] * bool(taken) + [fitted] * bool(fitted)
        self.source = open_images(config.data, channels=model.image_channels)
        self.samples = next(ordered_batches(self.source, config.input, SAMPLES)).image
        self.validation = self._validation_images(model.image_channels)
        losses = _losses(config, runtime.device)
        state, gan = start_state(model, config.optimization, runtime), None
        if losses.weight("adversarial"):
            gan = GANTrainer(config.adversarial, losses, state, config.optimization, runtime)
        _rehearse(state.averaged.model, losses, runtime.place(self.samples[:1]))
        super().__init__(state, TokenizerObjective(model, losses, runtime), gan)

    def introduction(self) -> list[str]:
        """Model, data and device; what was taken from another model; scales that were changed."""
        model, step, runtime, images = self.state.model, self.state.step, self.runtime, len(self.source)
        weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        how = [runtime.device.type, next(name for name, dtype in DTYPES.items() if dtype == runtime.dtype)]
        how += [f"{process_count()} processes"] * (process_count() > 1)
        how += ["channels last"] * runtime.channels_last + ["compiled"] * runtime.compile
        begin = f"going on after step {step}" if step else "training"
        name = self.config.model if self.config.model != "auto" else self.config.init_from or DEFAULT
        return [
            f"{begin}: {name}, {weights:.1f} M weights, {model.vocab_size} codes, stride {model.stride}; "
            f"{images} image{'s' * (images != 1)}; {', '.join(how)}",
            *self.remarks,
        ]

    def batches(self) -> Iterator[Batch]:
        """This process's pieces of every batch, from the next step on, for as long as most images can be read."""
        config = self.config
        start = self.state.step * config.optimization.accumulate
        pixels: Pixels = "pinned" if self.runtime.device.type == "cuda" else "uint8"
        for piece in training_batches(
            self.source, config.input, self.piece, config.seed, start,
            choose_workers(config.workers, self.runtime.device),
            rank=process_rank(), world=process_count(), pixels=pixels,
        ):  # fmt: skip
            if len(self.source.unreadable) > len(self.source) / 2:
                raise ValueError(f"most images cannot be read: {self.source.unreadable_summary()}")
            yield piece

    def log_line(self, result: StepResult, images_per_second: float) -> dict[str, Any]:
        """See `tokenizer_line`."""
        return tokenizer_line(result, self.state.model.vocab_size, self.state.skipped, images_per_second)

    def sample(self) -> Tensor:
        """Originals over what the averaged model makes of them."""
        return reconstruction_grid(self.state.averaged.model, self.runtime.place(self.samples))

    def quality(self) -> Quality:
        """Mean PSNR in dB over the validation images, in the first process; at the end, a word if it is useless yet."""
        return on_main(self._quality)

    @torch.no_grad()
    def _quality(self) -> Quality:
        model, steps = self.state.averaged.model, self.config.optimization.steps
        found = _mean_psnr(self.validation, lambda image: model(self.runtime.place(image)).reconstruction.cpu())
        baseline = _mean_psnr(self.validation, mean_color)
        if self.state.step < steps or found >= baseline:
            return Quality(found)
        note = f"after {steps} steps PSNR is {found:.2f} dB, below the {baseline:.2f} dB of one mean colour per image: "
        return Quality(found, note=note + "go on with more --optimization.steps")

    def data_notes(self) -> dict[str, Any]:
        """The order of an epoch depends on which images there are."""
        keys = "\n".join(self.source.key(index) for index in range(len(self.source)))
        return {"images": len(self.source), "images_sha256": hashlib.sha256(keys.encode()).hexdigest()}

    def _validation_images(self, channels: int) -> list[Tensor]:
        if not self.config.validation:
            return [self.samples]
        batches = ordered_batches(open_images(self.config.validation, channels=channels), self.config.input, SAMPLES)
        return [batch.image for batch in islice(batches, VALIDATION_BATCHES)]


def _mean_psnr(images: list[Tensor], reconstruct: Callable[[Tensor], Tensor]) -> float:
    """Mean over all images of the PSNR in dB of what becomes of them."""
    decibels = [psnr(reconstruct(image), image) for image in images]
    return float(torch.cat(decibels).clamp(max=BEST_DECIBELS).mean())


def _losses(config: TrainConfig, device: torch.device) -> LossTable:
    """The table of weights with the pretrained networks that it names."""
    networks = build_network_losses(config.loss_weights, config.pretrained or None, download=config.download)
    return LossTable(config.loss_weights, {name: loss.to(device) for name, loss in networks.items()})


@torch.no_grad()
def _rehearse(model: Tokenizer, losses: LossTable, image: Tensor) -> None:
    """One image through model and losses: what does not fit together is refused before the run folder is made."""
    losses(image, model(image))
