"""Train a tokenizer on images: from a config to a run folder.

RUN/config.json, model.safetensors    the averaged weights: what `smalti.load` and every other command take
RUN/train.yaml                        the complete config, itself a recipe
RUN/log.jsonl, tensorboard/           the numbers of every few steps
RUN/samples/NNNNNN.png                originals over reconstructions after so many steps
RUN/checkpoints/NNNNNN/               everything to go on from there: the newest, and the best

The loop itself is `smalti.training.loop`; here is what goes on around it. Of several processes the first alone writes
and reports (`on_main`), and an error of one ends them all (`in_all`).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from smalti.data import (
    Batch,
    ImageSource,
    open_images,
    ordered_batches,
    save_image,
    training_batches,
)
from smalti.data.loader import Pixels, choose_workers
from smalti.jobs.train_config import TrainConfig, plain_settings
from smalti.jobs.train_scales import fit_scales
from smalti.losses import LossTable, build_network_losses
from smalti.metrics import mean_color, psnr
from smalti.ops.device import DTYPES
from smalti.ops.processes import process_count, process_rank
from smalti.tokenizers import Tokenizer
from smalti.training import (
    Adversary,
    DataError,
    Reporter,
    ResumePoint,
    RunFolder,
    RunRecord,
    Runtime,
    Silent,
    SkippedStep,
    StepResult,
    StopRequest,
    TrainingState,
    any_process,
    begin_random_numbers,
    best_checkpoint,
    choose_runtime,
    in_all,
    join_processes,
    launched_processes,
    load_checkpoint,
    measure,
    on_main,
    own_random_numbers,
    piece_size,
    random_state,
    read_notes,
    read_settings,
    reconstruction_grid,
    share,
    start_state,
    take_weights,
    train_steps,
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
    """The last line of the log, see `smalti.training.measure`; empty if there was none."""
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
    runtime = _runtime(config)
    line = ""
    if not (config.resume and _is_recorded(config)):
        config, line = fit_scales(config)
    reporter = reporter if reporter is not None and process_rank() == 0 else Silent()
    settings = plain_settings(config)
    with (
        closing(RunFolder(config.out)) as folder,
        own_random_numbers(config.seed, runtime.device),
        runtime.fast_products(),
    ):
        point = on_main(lambda: _claim(folder, config, settings))
        run = in_all(lambda: _Run(config, reporter, runtime, folder, point))
        # Up to here nothing was written: a mistake in the settings leaves no trace.
        on_main(lambda: run.open(settings))
        if line:
            reporter.note(line)
        return run.go()


def build_model(config: TrainConfig) -> tuple[Tokenizer, str]:
    """The model before its first step, and in words what it took from `init_from`."""
    source = open_tokenizer(config.init_from) if config.init_from else None
    if source is not None and config.model == "auto":
        return source, "encoder, quantizer, decoder taken"
    model = build(DEFAULT if config.model == "auto" else config.model, **config.model_args)
    return model, "" if source is None else "; ".join(map(str, take_weights(model, source)))


def _runtime(config: TrainConfig) -> Runtime:
    """One process, or one of several where the config says so."""
    many = launched_processes() > 1 if config.distributed == "auto" else config.distributed
    choose = join_processes if many else choose_runtime
    return choose(config.device, config.precision, config.channels_last, config.compile)


def _is_recorded(config: TrainConfig) -> bool:
    """Whether the run to resume has the very model arguments; whatever its scales, they stay."""
    return (read_settings(config.out) or {}).get("model_args") == config.model_args


def _claim(folder: RunFolder, config: TrainConfig, settings: dict[str, Any]) -> ResumePoint | None:
    """Refuse a folder that may not be written; where to go on, None at the beginning."""
    if config.resume:
        return folder.take_again(settings)
    folder.check_new(config.force)
    return None


class _Run:
    """A run from its first step, or the one after a checkpoint, to its end."""

    def __init__(
        self, config: TrainConfig, reporter: Reporter, runtime: Runtime, folder: RunFolder, point: ResumePoint | None
    ):
        self.config, self.reporter, self.runtime, self.folder, self.point = config, reporter, runtime, folder, point
        checkpoint = point.checkpoint if point else None
        piece_size(config.optimization, process_count())  # refuses what cannot be cut
        model, self.taken = (open_tokenizer(checkpoint), "") if checkpoint else build_model(config)
        self.source = open_images(config.data, channels=model.image_channels)
        self.samples = next(ordered_batches(self.source, config.input, SAMPLES)).image
        self.validation = self._validation_images(model.image_channels)
        self.losses = _losses(config, runtime.device)
        self.state = start_state(model, config.optimization, runtime)
        if self.losses.weight("adversarial"):
            self.state.oppose(
                Adversary(config.adversarial, self.losses, model, config.optimization, runtime, self.state.scaler)
            )
        _rehearse(self.state.averaged.model, self.losses, runtime.place(self.samples[:1]))
        self.random = load_checkpoint(checkpoint, self.state) if checkpoint else []
        self.record: RunRecord | None = None
        self.line: dict[str, Any] = {}
        self.speed = _Speed()

    def open(self, settings: dict[str, Any]) -> None:
        """Make or tidy the run folder, begin the log, and say what is about to happen."""
        for line in self.folder.set_aside(self.point) if self.point else ():
            self.reporter.note(line)
        if self.point is None:
            self.folder.take_new(self.config.force)
            self.folder.clear()
        self.folder.tidy()
        self.folder.write_settings(settings)
        self.record = RunRecord(self.folder.path, self.state.step)
        self.reporter.note(_introduction(self.config, self.runtime, self.state, self.source))
        if self.taken:
            self.reporter.note(f"weights of {self.config.init_from}: {self.taken}")
        if self.point and read_notes(self.point.checkpoint) != _notes(self.source):
            self.reporter.note(
                "the images are not those of the first part of the run: their order is a new one from here on"
            )

    def go(self) -> TrainResult:
        """The steps, and between them whatever is due."""
        config, optimization, first = self.config, self.config.optimization, self.state.step
        begin_random_numbers(config.seed, self.random, self.runtime.device)
        self.reporter.start(optimization.steps, first)
        try:
            with StopRequest() as stop:
                for result in train_steps(
                    self.state, self._pieces(), self.losses, optimization, self.runtime, config.log_every
                ):
                    self._report(result)
                    stopping = any_process(stop.requested)
                    if stopping or self._due(config.checkpoint_every, result.step):
                        self._save()
                    if stopping:
                        break
        except DataError:  # the state is whole: keep it
            if self.state.step > first:
                self._save()
            raise
        finally:
            self.reporter.close()
            if self.record is not None:
                self.record.close()
        for unreadable in share(self.source.unreadable):
            self.source.unreadable.update(unreadable)
        return TrainResult(
            run=self.config.out,
            step=self.state.step,
            steps=optimization.steps,
            last=self.line,
            unreadable=self.source.unreadable_summary(),
            skipped=self.state.skipped,
            best=on_main(lambda: str(best_checkpoint(self.folder.checkpoints) or "")),
        )

    def _pieces(self) -> Iterator[Batch]:
        """This process's pieces of every batch, from the next step on, for as long as most images can be read."""
        config, optimization = self.config, self.config.optimization
        size = piece_size(optimization, process_count())
        start = self.state.step * optimization.accumulate
        pixels: Pixels = "pinned" if self.runtime.device.type == "cuda" else "uint8"
        for piece in training_batches(
            self.source, config.input, size, config.seed, start, choose_workers(config.workers, self.runtime.device),
            rank=process_rank(), world=process_count(), pixels=pixels,
        ):  # fmt: skip
            if len(self.source.unreadable) > len(self.source) / 2:
                raise ValueError(f"most images cannot be read: {self.source.unreadable_summary()}")
            yield piece

    def _due(self, every: int, step: int) -> bool:
        """Whether what happens `every` so many steps happens now that this one is reported; after the last all does."""
        return step == self.state.step and (step % every == 0 or step == self.config.optimization.steps)

    def _report(self, result: StepResult | SkippedStep) -> None:
        """Log and picture, as far as they are due."""
        if isinstance(result, SkippedStep):
            self.reporter.note(f"skipped a batch: {result.reason}")
        else:
            self.speed.add(result)
            if result.step == 1 or self._due(self.config.log_every, result.step):
                self._log(result)
        self.reporter.step(result.step)
        if self._due(self.config.sample_every, result.step):
            on_main(self._sample)

    def _log(self, result: StepResult) -> None:
        self.line = measure(result, self.state.model.vocab_size, self.state.skipped, self.speed.take())
        self.reporter.measured(self.line)
        on_main(self._write_line)

    def _write_line(self) -> None:
        if self.record is not None:
            self.record.add(self.line)

    def _sample(self) -> None:
        """Originals over what the averaged model makes of them."""
        picture = reconstruction_grid(self.state.averaged.model, self.runtime.place(self.samples))
        self.folder.samples.mkdir(exist_ok=True)
        save_image(self.folder.samples / f"{self.state.step:06d}.png", picture, force=True)
        if self.record is not None:
            self.record.add_picture(picture, self.state.step)

    def _save(self) -> None:
        """A checkpoint with the random state of every process."""
        for skipped in self.state.look(self.config.optimization, every=1):
            self._report(skipped)
        random = share(random_state(self.runtime.device))
        on_main(lambda: self.folder.save(self.state, random, self._quality(), _notes(self.source)))

    @torch.no_grad()
    def _quality(self) -> float:
        """Mean PSNR in dB of the averaged model over the validation images; at the end, a word if it is useless yet."""
        model, steps = self.state.averaged.model, self.config.optimization.steps
        found = _mean_psnr(self.validation, lambda image: model(self.runtime.place(image)).reconstruction.cpu())
        baseline = _mean_psnr(self.validation, mean_color)
        if self.state.step == steps and found < baseline:
            self.reporter.note(
                f"after {steps} steps PSNR is {found:.2f} dB, below the {baseline:.2f} dB of one mean colour an image: "
                "go on with more --optimization.steps"
            )
        return found

    def _validation_images(self, channels: int) -> list[Tensor]:
        if not self.config.validation:
            return [self.samples]
        batches = ordered_batches(open_images(self.config.validation, channels=channels), self.config.input, SAMPLES)
        return [batch.image for batch in islice(batches, VALIDATION_BATCHES)]


def _mean_psnr(images: list[Tensor], reconstruct: Callable[[Tensor], Tensor]) -> float:
    """Mean over all images of the PSNR in dB of what becomes of them."""
    decibels = [psnr(reconstruct(image), image) for image in images]
    return float(torch.cat(decibels).clamp(max=BEST_DECIBELS).mean())


class _Speed:
    """Images a second since the last time somebody asked; what happens between steps does not count."""

    def __init__(self) -> None:
        self._images, self._seconds = 0, 0.0

    def add(self, result: StepResult) -> None:
        self._images += result.images
        self._seconds += result.seconds

    def take(self) -> float:
        speed = self._images / self._seconds
        self._images, self._seconds = 0, 0.0
        return speed


def _losses(config: TrainConfig, device: torch.device) -> LossTable:
    """The table of weights with the pretrained networks that it names."""
    networks = build_network_losses(config.loss_weights, config.pretrained or None, download=config.download)
    return LossTable(config.loss_weights, {name: loss.to(device) for name, loss in networks.items()})


@torch.no_grad()
def _rehearse(model: Tokenizer, losses: LossTable, image: Tensor) -> None:
    """One image through model and losses: what does not fit together is refused before the run folder is made."""
    losses(image, model(image))


def _notes(source: ImageSource) -> dict[str, Any]:
    """What tells whether a resumed run sees the same images: the order of an epoch depends on them."""
    keys = "\n".join(source.key(index) for index in range(len(source)))
    return {"images": len(source), "images_sha256": hashlib.sha256(keys.encode()).hexdigest()}


def _introduction(config: TrainConfig, runtime: Runtime, state: TrainingState, source: ImageSource) -> str:
    """One line on what is about to be trained, on what, where."""
    model, step = state.model, state.step
    weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    how = [runtime.device.type, next(name for name, dtype in DTYPES.items() if dtype == runtime.dtype)]
    how += [f"{process_count()} processes"] * (process_count() > 1)
    how += ["channels last"] * runtime.channels_last + ["compiled"] * runtime.compile
    begin = f"going on after step {step}" if step else "training"
    name = config.model if config.model != "auto" else config.init_from or DEFAULT
    return (
        f"{begin}: {name}, {weights:.1f} M weights, {model.vocab_size} codes, stride {model.stride}; "
        f"{len(source)} image{'s' * (len(source) != 1)}; {', '.join(how)}"
    )
