"""Train a tokenizer on images: from a config to a run folder.

RUN/config.json, model.safetensors    the averaged weights: what `smalti.load` and every other command take
RUN/train.yaml                        the complete config, itself a recipe
RUN/log.jsonl, tensorboard/           the numbers of every few steps
RUN/samples/NNNNNN.png                originals over reconstructions after so many steps
RUN/checkpoints/NNNNNN/               everything to go on from there

The loop itself is `smalti.training.loop`; here is what goes on around it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from smalti.data import ImageSource, TransformConfig, open_images, ordered_batches, save_image, training_batches
from smalti.losses import LossTable, build_network_losses, check_weights
from smalti.tokenizers import Tokenizer
from smalti.training import (
    OptimizationConfig,
    Precision,
    Reporter,
    RunFolder,
    RunRecord,
    Runtime,
    Silent,
    StepResult,
    StopRequest,
    TrainingState,
    choose_runtime,
    load_checkpoint,
    measure,
    read_notes,
    reconstruction_grid,
    restore_random_state,
    start_state,
    train_steps,
)
from smalti.zoo import build

SAMPLES = 8
"""Pictures in a sample grid: the first of the data."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a tokenizer on images.

    It has many fields, because it is the one page that says everything about a run; those that belong together are
    configs of their own.
    """

    data: str
    """Images: a folder, searched through; a file; or a name: embedded, fashion-mnist."""
    out: str
    """The run folder to make."""
    model: str = "multi-scale"
    """Which model, by its name in smalti.zoo."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of the model to change: vocab_size, hidden_dim, patch_nums, ..."""
    input: TransformConfig = field(default_factory=lambda: TransformConfig(size=64, crop="random", zoom=2.0, flip=True))
    """How images become the model's input."""
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    """How long and how fast to learn."""
    loss_weights: dict[str, float] = field(default_factory=lambda: {"l1": 1.0})
    """Weights of l1, l2, charbonnier, ms_ssim; of lpips, efficientnet_lite0, hed_vgg16, which need a pretrained
    network; and of the quantizer's terms where they should differ from its paper."""
    pretrained: str = ""
    """Folder to look for pretrained networks of losses in before the usual places."""
    download: bool = False
    """Fetch pretrained networks that are nowhere on this machine."""
    precision: Precision = "auto"
    """Number format of forward passes; auto: bf16 where the hardware multiplies it."""
    channels_last: Literal["auto"] | bool = "auto"
    """Whether images lie in memory as NHWC; auto: yes."""
    compile: bool = False
    """Run encoder and decoder through torch.compile, which needs a C++ compiler: a slow start, then faster steps."""
    seed: int = 0
    """Decides initial weights, order of the images and augmentation."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: cuda if there is one."""
    workers: int = 0
    """Processes that read images; 0: this one does."""
    log_every: int = 10
    """Steps between lines of the log."""
    sample_every: int = 500
    """Steps between sample pictures."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    resume: bool = False
    """Go on from the last checkpoint in the run folder."""
    force: bool = False
    """Replace the run that is in the folder."""

    def __post_init__(self) -> None:
        for name in ("log_every", "sample_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name in ("seed", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 0")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision: got {self.precision!r}, expected auto, fp32 or bf16")
        if self.channels_last not in ("auto", True, False):
            raise ValueError(f"channels_last: got {self.channels_last!r}, expected auto, true or false")
        if self.resume and self.force:
            raise ValueError("resume, force: got both, expected one: go on with the run in the folder, or replace it")
        check_weights(self.loss_weights)


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

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run early."""
        return self.step < self.steps


def train(config: TrainConfig, reporter: Reporter | None = None) -> TrainResult:
    """Train, or go on with training.

    Args:
        config: everything.
        reporter: hears of the progress; default: nobody.

    Raises:
        ValueError: a bad setting, no usable image; NonFiniteLossError when the loss diverges.
        FileExistsError: the run folder is not empty, and neither `resume` nor `force` is set.
        FileNotFoundError: no data; nothing to resume.
    """
    reporter = Silent() if reporter is None else reporter
    runtime = choose_runtime(config.device, config.precision, config.channels_last, config.compile)
    folder = RunFolder(config.out)
    settings = plain_settings(config)
    if not config.resume:
        folder.check_new(config.force)
    checkpoint = folder.check_resumable(settings) if config.resume else None
    with torch.random.fork_rng([runtime.device] if runtime.device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        model = build(config.model, **config.model_args)
        source = open_images(config.data, channels=model.image_channels)
        samples = next(ordered_batches(source, config.input, SAMPLES)).image
        losses = _losses(config, runtime.device)
        state = start_state(model, config.optimization, runtime)
        _rehearse(state.averaged.model, losses, runtime.place(samples[:1]))
        random = load_checkpoint(checkpoint, state) if checkpoint else None
        # Up to here nothing was written: a mistake in the settings leaves no trace.
        if checkpoint is None:
            folder.clear()
        folder.write_settings(settings)
        reporter.note(_introduction(config, runtime, model, source, state.step))
        if checkpoint and read_notes(checkpoint) != _notes(source):
            reporter.note(
                "the images are not those of the first part of the run: their order is a new one from here on"
            )
        job = _Run(config, reporter, runtime, folder, source, samples)
        return job.go(state, losses, random)


@dataclass(frozen=True)
class _Run:
    """What stays the same from step to step."""

    config: TrainConfig
    reporter: Reporter
    runtime: Runtime
    folder: RunFolder
    source: ImageSource
    samples: Tensor

    def go(self, state: TrainingState, losses: LossTable, random: dict[str, Any] | None) -> TrainResult:
        """The steps, and between them whatever is due."""
        config, batch_size = self.config, self.config.optimization.batch_size
        batches = training_batches(self.source, config.input, batch_size, config.seed, state.step, config.workers)
        if random is not None:
            restore_random_state(random)
        line: dict[str, Any] = {}
        speed = _Speed()
        self.reporter.start(config.optimization.steps, state.step)
        try:
            with RunRecord(self.folder.path, state.step) as record, StopRequest() as stop:
                for result in train_steps(state, batches, losses, config.optimization, self.runtime):
                    speed.add(result)
                    last = result.step == config.optimization.steps
                    if last or result.step == 1 or result.step % config.log_every == 0:
                        line = measure(result, state.model.vocab_size, speed.take())
                        record.add(line)
                        self.reporter.measured(line)
                    self.reporter.step(result.step)
                    if last or result.step % config.sample_every == 0:
                        self._sample(state, record)
                    if last or stop.requested or result.step % config.checkpoint_every == 0:
                        self.folder.save(state, _notes(self.source))
                    if stop.requested:
                        break
        finally:
            self.reporter.close()
        return TrainResult(config.out, state.step, config.optimization.steps, line, self.source.unreadable_summary())

    def _sample(self, state: TrainingState, record: RunRecord) -> None:
        """Originals over what the averaged model makes of them."""
        picture = reconstruction_grid(state.averaged.model, self.runtime.place(self.samples))
        self.folder.samples.mkdir(exist_ok=True)
        save_image(self.folder.samples / f"{state.step:06d}.png", picture, force=True)
        record.add_picture(picture, state.step)


class _Speed:
    """Images a second since the last time somebody asked; what happens between steps does not count."""

    def __init__(self) -> None:
        self._images, self._seconds = 0, 0.0

    def add(self, result: StepResult) -> None:
        self._images += result.image.shape[0]
        self._seconds += result.seconds

    def take(self) -> float:
        speed = self._images / self._seconds
        self._images, self._seconds = 0, 0.0
        return speed


def plain_settings(config: TrainConfig) -> dict[str, Any]:
    """A config as it stands in RUN/train.yaml: plain types, without `resume` and `force`."""
    settings = _plain(asdict(config))
    del settings["resume"], settings["force"]
    return settings


def _plain(value: Any) -> Any:
    """Tuples as lists, in any depth: YAML has one kind of sequence."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


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


def _introduction(config: TrainConfig, runtime: Runtime, model: Tokenizer, source: ImageSource, step: int) -> str:
    """One line on what is about to be trained, on what, where."""
    weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    how = [runtime.device.type, "bf16" if runtime.bf16 else "fp32"]
    how += ["channels last"] * runtime.channels_last + ["compiled"] * runtime.compile
    begin = f"going on after step {step}" if step else "training"
    return (
        f"{begin}: {config.model}, {weights:.1f} M weights, {model.vocab_size} codes, stride {model.stride}; "
        f"{len(source)} image{'s' * (len(source) != 1)}; {', '.join(how)}"
    )
