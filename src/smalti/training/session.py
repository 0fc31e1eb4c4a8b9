"""The session of a run: all that goes on around the loop, the same for tokenizers and priors.

A session owns the run folder, resuming, signals, cadence (when to log, draw samples, save), seeds and delivery. A job
brings a `Task`: batches, what a step minimises, the line of the log, and the quality of a checkpoint.
一次训练的外围：运行目录、续训、信号、节奏、随机种子与交付归会话管；数据、目标、日志行与质量由任务（`Task`）提供。

RUN/config.json, model.safetensors    the averaged weights, newest or best
RUN/train.yaml                        the complete config, itself a recipe
RUN/log.jsonl, tensorboard/           the numbers of every few steps
RUN/samples/NNNNNN.png                sample pictures, where the task draws any
RUN/checkpoints/NNNNNN/               everything to go on from there: the newest, and the best

Of several processes the first alone writes and reports (`on_main`), and an error of one ends them all (`in_all`).
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
"""Ctrl-C, and what a cluster sends before it takes a machine back."""

ONE_REQUEST = 1.0
"""Seconds within which signals count as one: a launcher passes on the Ctrl-C that its processes got as well."""


@runtime_checkable
class SessionSettings(Protocol):
    """The settings of a run that its session needs; the config of a job has more."""

    @property
    def out(self) -> str:
        """The run folder."""

    @property
    def seed(self) -> int:
        """Decides every random number."""

    @property
    def resume(self) -> bool:
        """Go on from the last checkpoint in the folder."""

    @property
    def force(self) -> bool:
        """Replace the run that is in the folder."""

    @property
    def log_every(self) -> int:
        """Steps between lines of the log."""

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""

    @property
    def optimization(self) -> OptimizationConfig:
        """How long and how fast to learn."""


@dataclass(frozen=True)
class Quality:
    """How good the averaged model is."""

    value: float | None
    """The higher the better; None: nothing to compute it on."""
    line: Mapping[str, Any] = field(default_factory=dict)
    """What the log should say of it; empty: nothing."""
    note: str = ""
    """What a person should hear of it; empty: nothing."""


class Task(ABC):
    """What a job brings to its session."""

    sample_every: int | None = None
    """Steps between sample pictures; None: there are none."""
    other_models: Mapping[str, SavedModel] = {}
    """Models that the run folder holds beside the trained one, by the name of their folder."""
    deliver_best = False
    """Whether the run ends with the weights of its best checkpoint in the folder, instead of the newest."""

    def __init__(self, state: TrainingState[Any], objective: Objective, gan: GANTrainer | None = None):
        self.state, self.objective, self.gan = state, objective, gan

    @abstractmethod
    def introduction(self) -> list[str]:
        """What is about to be trained, on what, where; a line for each thing to say."""

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """This process's pieces of every batch, from the next step on."""

    @abstractmethod
    def log_line(self, result: StepResult, images_per_second: float) -> dict[str, Any]:
        """The numbers of a step; every process calls this."""

    @abstractmethod
    def quality(self) -> Quality:
        """How good the averaged model is now; every process calls this, and the answer of the first one counts."""

    def data_notes(self) -> dict[str, Any]:
        """What tells whether a resumed run sees the same data, as plain JSON types."""
        return {}

    def sample(self) -> Tensor:
        """The sample picture of the averaged model now; in the first process."""
        raise NotImplementedError("a task with sample_every draws sample pictures")


AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True)
class SessionEnd:
    """What a session leaves."""

    line: Mapping[str, Any]
    """The last line of the log that a step wrote; empty if there was none."""
    best: Path | None
    """The checkpoint of the highest quality; None if none has one."""
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
    """This process alone, or as one of several.

    Args:
        device: see `choose_runtime`; so are `precision`, `channels_last` and `compile`.
        distributed: join the processes of the launch; auto: if there are more than one.
        sharded: join them, and cut the weights over them.
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
        settings: the complete config as RUN/train.yaml has it.
        runtime: see `open_runtime`.
        reporter: hears of the progress; None: nobody. Of several processes only the first one's does.
        build: makes the task, given the checkpoint to go on from or None. The state is that before the first step; its
            model is the checkpoint's.

    Raises:
        FileExistsError: the folder is not empty, and neither `resume` nor `force` is set; or another process trains
            there.
        FileNotFoundError: nothing to resume.
        ValueError: what `build` refuses; `DataError` when the data can no longer be read, `NonFiniteLossError`.
        OSError: the disk is full.
    """
    reporter = reporter if reporter is not None and process_rank() == 0 else Silent()
    with (
        closing(RunFolder(config.out)) as folder,
        own_random_numbers(config.seed, runtime.device),
        runtime.fast_products(),
    ):
        # 1. Refuse a folder that may not be written; find where to go on / 拒绝不可写的目录；找到续训点
        point = on_main(lambda: _claim(folder, config, settings))
        checkpoint = point.checkpoint if point else None
        # 2. Build. Nothing is written up to here: a mistake in the settings leaves no trace / 此前不写任何文件
        task = in_all(lambda: build(checkpoint))
        random = in_all(lambda: load_checkpoint(checkpoint, task.state) if checkpoint else [])
        # 3. Make or tidy the folder, begin the log / 建立或整理目录，开始日志
        session = _Session(config, runtime, reporter, folder, task)
        on_main(lambda: session.open(settings, point))
        # 4. The steps, and between them whatever is due / 训练各步，其间按节奏记录与保存
        begin_random_numbers(config.seed, random, runtime.device)
        session.train()
        # 5. Deliver / 交付
        return task, on_main(session.end)


def _claim(folder: RunFolder, config: SessionSettings, settings: Mapping[str, Any]) -> ResumePoint | None:
    """Refuse a folder that may not be written; where to go on, None at the beginning."""
    if config.resume:
        return folder.take_again(settings)
    folder.check_new(config.force)
    return None


class _Session:
    """A run from its first step, or the one after a checkpoint, to its end."""

    def __init__(self, config: SessionSettings, runtime: Runtime, reporter: Reporter, folder: RunFolder, task: Task):
        self.config, self.runtime, self.reporter, self.folder, self.task = config, runtime, reporter, folder, task
        self.state, self.steps = task.state, config.optimization.steps
        self.record: RunRecord | None = None
        self.line: dict[str, Any] = {}
        self.images, self.seconds = 0, 0.0

    def open(self, settings: Mapping[str, Any], point: ResumePoint | None) -> None:
        """Make or tidy the run folder, begin the log, and say what is about to happen; in the first process."""
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
                "the images are not those of the first part of the run: their order is a new one from here on"
            )

    def train(self) -> None:
        """The steps, and between them whatever is due."""
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
        except DataError:  # the state is whole: keep it
            if self.state.step > first:
                self._save()
            raise
        finally:
            self.reporter.close()
            if self.record is not None:
                self.record.close()

    def end(self) -> SessionEnd:
        """What the run leaves; delivers the best weights where the task wants that. In the first process."""
        best = best_checkpoint(self.folder.checkpoints)
        if best is not None and self.task.deliver_best:
            self.folder.deliver_checkpoint(best)
        return SessionEnd(self.line, best, None if best is None else read_manifest(best)["quality"])

    def _due(self, every: int | None, step: int) -> bool:
        """Whether what happens `every` so many steps happens now that this one is reported; after the last all does."""
        return every is not None and step == self.state.step and (step % every == 0 or step == self.steps)

    def _report(self, result: StepResult | SkippedStep) -> None:
        """Log and draw, as far as they are due."""
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
        """A line of numbers. The speed is that since the last line; what happens between steps does not count."""
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
        """A checkpoint, with its quality and the random state of every process."""
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
    """Context in which the first SIGINT or SIGTERM is remembered; a later one interrupts at once.

    >>> with StopRequest() as stop:
    ...     for batch in batches:
    ...         step(batch)
    ...         if stop.requested:
    ...             break

    Python delivers signals to the main thread alone; in another thread this does nothing.
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
