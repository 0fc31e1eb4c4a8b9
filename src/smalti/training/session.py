"""The session of a run: everything around the training loop, shared by tokenizers and priors.

A session handles the run directory, resuming, signals, cadence (when to log, draw samples, save), seeds and delivery. A
job supplies a `Task`: batches, objective, log lines and the quality of a checkpoint.
一次训练的外围：运行文件夹、续训、信号、节奏、随机种子与交付归会话管；数据、目标、日志行与质量由任务（`Task`）提供。

RUN/config.json, model.safetensors    the averaged weights, newest or best
RUN/train.yaml                        the complete config, which is also a recipe
RUN/log.jsonl, tensorboard/           the numbers of logged steps
RUN/samples/NNNNNN.png                sample pictures, where the task draws any
RUN/checkpoints/NNNNNN/               all state for resuming: the newest checkpoints and the best

With several processes only the first writes and reports (`on_main`), and an error in one ends all (`in_all`).
"""

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from smalti.checks import expect
from smalti.data import save_image
from smalti.distributed import all_gather, any_process, in_all, on_main, process_rank
from smalti.models import SavedModel
from smalti.ops.device import Precision
from smalti.training.checkpoint import best_checkpoint, deliver, load_checkpoint, read_manifest, read_notes
from smalti.training.fully_sharded import join_sharded
from smalti.training.gan import GANTrainer
from smalti.training.loop import DataError, StepResult, train_steps
from smalti.training.objectives import Objective
from smalti.training.optimization import OptimizationConfig
from smalti.training.progress import Reporter, Silent
from smalti.training.randomness import begin_random_numbers, own_random_numbers, random_state
from smalti.training.record import RunRecord
from smalti.training.run_folder import ResumePoint, RunFolder
from smalti.training.runtime import Runtime, choose_runtime, join_processes, launched_processes
from smalti.training.state import SkippedStep, TrainingState

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and the signal of a cluster before it stops a job."""

ONE_REQUEST = 1.0
"""Signals within this time in seconds count as one: a launcher forwards a Ctrl-C that its processes also receive."""


@runtime_checkable
class SessionSettings(Protocol):
    """The settings of a run that a session reads; the config of a job has more."""

    @property
    def out(self) -> str:
        """The run directory."""

    @property
    def seed(self) -> int:
        """Seed of all random numbers."""

    @property
    def resume(self) -> bool:
        """Resume from the last checkpoint in the run directory."""

    @property
    def force(self) -> bool:
        """Replace an existing run in the run directory."""

    @property
    def log_every(self) -> int:
        """Steps between log lines."""

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""

    @property
    def optimization(self) -> OptimizationConfig:
        """Number of steps, batch size, learning rate and so on."""


@dataclass(frozen=True)
class Quality:
    """Quality of the averaged model."""

    value: float | None
    """Higher is better; None: not measured, as there is no data for it."""
    line: Mapping[str, Any] = field(default_factory=dict)
    """Numbers for the log; may be empty."""
    note: str = ""
    """Message for the reporter; may be empty."""


class Task(ABC):
    """The part of a job that a session calls."""

    sample_every: int | None = None
    """Steps between sample pictures; None: no sample pictures."""
    other_models: Mapping[str, SavedModel] = {}
    """Further models for the run directory, by the name of their directory."""
    deliver_best = False
    """Whether the run delivers the weights of its best checkpoint instead of the newest."""

    def __init__(self, state: TrainingState[Any], objective: Objective, gan: GANTrainer | None = None):
        self.state, self.objective, self.gan = state, objective, gan

    @abstractmethod
    def introduction(self) -> list[str]:
        """Lines of text about model, data and device, before training starts."""

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """The pieces of every batch for this process, from the next step on."""

    @abstractmethod
    def log_line(self, result: StepResult, images_per_second: float) -> dict[str, Any]:
        """The numbers of a step for the log; every process calls this."""

    @abstractmethod
    def quality(self) -> Quality:
        """Current quality of the averaged model; every process calls this, and the result of the first one is used."""

    def data_notes(self) -> dict[str, Any]:
        """Description of the data in plain JSON types, to detect other data on resume."""
        return {}

    def sample(self) -> Tensor:
        """A sample picture of the current averaged model; called in the first process."""
        raise NotImplementedError("sample: a task with sample_every must implement it")


AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True)
class SessionEnd:
    """Result of a session."""

    line: Mapping[str, Any]
    """The last log line of a step; empty if there is none."""
    best: Path | None
    """The checkpoint with the highest quality; None if quality was not measured."""
    best_quality: float | None
    """Its quality."""


def open_runtime(
    device: str,
    precision: Precision,
    channels_last: bool | Literal["auto"] = False,
    compile: bool = False,
    distributed: bool | Literal["auto"] = "auto",
    sharded: bool = False,
) -> Runtime:
    """The runtime of a single process or of one of several.

    Args:
        device: see `choose_runtime`, also for `precision`, `channels_last` and `compile`.
        distributed: join the processes of the launch; auto: if there is more than one.
        sharded: join them, and shard the weights over them.
    """
    if sharded:
        return join_sharded(device, precision)
    many = launched_processes() > 1 if distributed == "auto" else distributed
    return (join_processes if many else choose_runtime)(device, precision, channels_last, compile)


def run_session(
    config: SessionSettings,
    settings: Mapping[str, Any],
    runtime: Runtime,
    reporter: Reporter | None,
    build: Callable[[Path | None], AnyTask],
) -> tuple[AnyTask, SessionEnd]:
    """Train from the first step, or from the one after the newest checkpoint, to the last step or a signal.

    Args:
        config: see `SessionSettings`.
        settings: the complete config, as in RUN/train.yaml.
        runtime: see `open_runtime`.
        reporter: receives the progress; None: no reports. With several processes only that of the first is used.
        build: makes the task, given the checkpoint to resume from or None. Its state is that before the first step,
            with the model of the checkpoint.

    Raises:
        FileExistsError: the directory is not empty, and neither `resume` nor `force` is set; or another process trains
            there.
        FileNotFoundError: nothing to resume.
        ValueError: errors of `build`; `DataError` if data cannot be read; `NonFiniteLossError`.
        OSError: the disk is full.
    """
    reporter = reporter if reporter is not None and process_rank() == 0 else Silent()
    with (
        closing(RunFolder(config.out)) as folder,
        own_random_numbers(config.seed, runtime.device),
        runtime.fast_products(),
    ):
        # 1. Refuse a directory that must not be written; find where to resume / 拒绝不可写的文件夹；找到续训点
        point = on_main(lambda: _claim(folder, config, settings))
        checkpoint = point.checkpoint if point else None
        # 2. Build. No file is written before this succeeds / 成功之前不写任何文件
        task = in_all(lambda: build(checkpoint))
        random = in_all(lambda: load_checkpoint(checkpoint, task.state) if checkpoint else [])
        in_all(lambda: _check_steps(config.optimization.steps, task.state.step))
        # 3. Create or tidy the run directory, start the log / 建立或整理运行文件夹，开始日志
        session = _Session(config, runtime, reporter, folder, task)
        on_main(lambda: session.open(settings, point))
        # 4. Training steps; between them log, draw samples and save on schedule / 训练各步，其间按节奏记录与保存
        begin_random_numbers(config.seed, random, runtime.device)
        session.train()
        # 5. Deliver / 交付
        return task, on_main(session.end)


def _claim(folder: RunFolder, config: SessionSettings, settings: Mapping[str, Any]) -> ResumePoint | None:
    """Refuse a directory that must not be written; return where to resume, None for a new run."""
    if config.resume:
        return folder.take_again(settings)
    folder.check_new(config.force)
    return None


def _check_steps(steps: int, done: int) -> None:
    expect(steps >= done, "steps", steps, f"at least {done}: the run to resume has done as many")


class _Session:
    """A run from its first step, or the step after a checkpoint, to its end."""

    def __init__(self, config: SessionSettings, runtime: Runtime, reporter: Reporter, folder: RunFolder, task: Task):
        self.config, self.runtime, self.reporter, self.folder, self.task = config, runtime, reporter, folder, task
        self.state, self.steps = task.state, config.optimization.steps
        self.record: RunRecord | None = None
        self.line: dict[str, Any] = {}
        self.images, self.seconds = 0, 0.0

    def open(self, settings: Mapping[str, Any], point: ResumePoint | None) -> None:
        """Create or tidy the run directory, start the log, report the introduction; in the first process."""
        for line in self.folder.set_aside(point) if point else ():
            self.reporter.note(line)
        if point is None:
            self.folder.take_new(self.config.force)
            self.folder.clear()
            for name, model in self.task.other_models.items():
                (self.folder.path / name).mkdir()
                deliver(model, self.folder.path / name)
        self.folder.tidy()
        self.folder.write_settings(settings)
        self.record = RunRecord(self.folder.path, self.state.step)
        for line in self.task.introduction():
            self.reporter.note(line)
        if point and read_notes(point.checkpoint) != self.task.data_notes():
            self.reporter.note(
                "the images differ from those of the first part of the run; their order changes from here on"
            )

    def train(self) -> None:
        """Run the steps; between them log, draw samples and save on schedule."""
        task, first = self.task, self.state.step
        self.whole_state = self.runtime.shard(self.state)
        self.reporter.start(self.steps, first)
        try:
            with StopRequest() as stop:
                for result in train_steps(
                    self.state, task.batches(), task.objective, self.config.optimization, self.runtime, task.gan,
                    self.config.log_every,
                ):  # fmt: skip
                    self._report(result)
                    stopping = any_process(stop.requested)
                    if stopping or self._due(self.config.checkpoint_every, result.step):
                        self._save()
                    if stopping:
                        break
        except DataError:  # the state is complete: save it
            if self.state.step > first:
                self._save()
            raise
        finally:
            self.reporter.close()
            if self.record is not None:
                self.record.close()

    def end(self) -> SessionEnd:
        """The result of the run; delivers the best weights if the task asks for them. In the first process."""
        best = best_checkpoint(self.folder.checkpoints)
        if best is not None and self.task.deliver_best:
            self.folder.deliver_checkpoint(best)
        return SessionEnd(self.line, best, None if best is None else read_manifest(best)["quality"])

    def _due(self, every: int | None, step: int) -> bool:
        """Whether an action of every `every` steps is due after this step; after the last step always."""
        return every is not None and step == self.state.step and (step % every == 0 or step == self.steps)

    def _report(self, result: StepResult | SkippedStep) -> None:
        """Log and draw samples, if due."""
        if isinstance(result, SkippedStep):
            self.reporter.note(f"skipped a batch: {result.reason}")
        else:
            self.images, self.seconds = self.images + result.images, self.seconds + result.seconds
            if result.step == 1 or self._due(self.config.log_every, result.step):
                self._log(result)
        self.reporter.step(result.step)
        if self._due(self.task.sample_every, result.step):
            on_main(self._sample)

    def _log(self, result: StepResult) -> None:
        """Write a log line. The speed is measured since the last line, without the time between steps."""
        self.line = self.task.log_line(result, self.images / self.seconds)
        self.images, self.seconds = 0, 0.0
        self.reporter.log(self.line)
        on_main(lambda: self._write(self.line))

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.record is not None:
            self.record.add(line)

    def _sample(self) -> None:
        picture = self.task.sample()
        self.folder.samples.mkdir(exist_ok=True)
        save_image(self.folder.samples / f"{self.state.step:06d}.png", picture, force=True)
        if self.record is not None:
            self.record.add_picture(picture, self.state.step)

    def _save(self) -> None:
        """Save a checkpoint, with its quality and the random state of every process."""
        for skipped in self.state.look(self.config.optimization, every=1):
            self._report(skipped)
        random = all_gather(random_state(self.runtime.device))
        quality = self.task.quality()
        if quality.note:
            self.reporter.note(quality.note)
        if quality.line:
            on_main(lambda: self._write(quality.line))
        whole = self.whole_state()
        on_main(lambda: self.folder.save(whole, random, quality.value, self.task.data_notes()))


class StopRequest:
    """Context that records the first SIGINT or SIGTERM; a second one interrupts at once.

    >>> with StopRequest() as stop:
    ...     for batch in batches:
    ...         step(batch)
    ...         if stop.requested:
    ...             break

    Python delivers signals only to the main thread; in other threads the context has no effect.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._former: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() - self._since > ONE_REQUEST:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
