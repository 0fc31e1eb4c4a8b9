"""The folder of a run: when it may be made or gone on with, and what is delivered into it.

Everything in it is written under another name first and then renamed, so a kill at any moment leaves a folder that can
be used and resumed.

One process at a time trains in a folder: RUN/.lock is locked by flock(2) and names the process. The system takes the
lock back when its holder ends, so one that a kill left behind keeps nobody out. Where there is no flock, on Windows and
on some network file systems, every process comes in.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.formats.atomic import remove, replace_file
from smalti.formats.recipe import read_recipe, write_recipe
from smalti.training.checkpoint import (
    AVERAGED,
    CONFIG,
    check_whole,
    deliver,
    remove_leftovers,
    save_checkpoint,
    sort_checkpoints,
)
from smalti.training.state import TrainingState

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SETTINGS = "train.yaml"
CONTENTS = (
    SETTINGS,
    "config.json",
    "model.safetensors",
    "log.jsonl",
    "tensorboard",
    "samples",
    "checkpoints",
    "tokenizer",
)
"""What a run folder holds; `clear` deletes this and nothing else."""

FIXED = (
    *("model", "model_args", "init_from", "input", "prior", "prior_args", "validation"),
    *("seed", "optimization.batch_size"),
)
"""Settings that a resumed run must share with its first part; with others it would be another run."""


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on."""

    checkpoint: Path
    """The newest whole checkpoint."""
    damaged: Mapping[Path, str]
    """Checkpoints that are damaged, and what is wrong with each."""


class FolderLock:
    """The lock of one folder, held or not by this process."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / ".lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Lock the folder, which must exist; nothing happens where this object holds the lock already.

        Raises:
            FileExistsError: somebody else holds it; names the process.
        """
        while self._descriptor is None and fcntl is not None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 20).decode() or "of unknown number"
                os.close(descriptor)
                raise FileExistsError(
                    f"out: process {holder} trains in {self.folder}; wait for its end or choose another name"
                ) from None
            except OSError:  # a file system without locks
                os.close(descriptor)
                return
            if self._is_named(descriptor):
                self._descriptor = descriptor
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
            else:  # the former holder has deleted it since it was opened
                os.close(descriptor)

    def release(self) -> None:
        """Delete the file and let others in; nothing happens where the lock is not held."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _is_named(self, descriptor: int) -> bool:
        """Whether the open file is the one that has the name."""
        return self.path.exists() and os.path.samestat(os.fstat(descriptor), self.path.stat())


class RunFolder:
    """One run folder, which may not exist yet."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = FolderLock(self.path)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Where sample pictures are."""
        return self.path / "samples"

    def check_new(self, force: bool) -> None:
        """Refuse a path that is taken, or that `clear` could not clear.

        Raises:
            FileExistsError: something is there and `force` is off, or what is there is not a run.
        """
        if not self.path.exists():
            return
        if self.path.is_dir() and all(path.name.startswith(".") for path in self.path.iterdir()):
            return
        if not (self.path / SETTINGS).is_file():
            raise FileExistsError(f"out: {self.path} exists and is not a run folder, choose another name")
        if not force:
            raise FileExistsError(f"out: {self.path} holds a run; --resume goes on with it, --force replaces it")

    def take_new(self, force: bool) -> None:
        """Make the folder and keep other processes out of it until `close`.

        Raises:
            FileExistsError: another process trains there, or has made a run there since `check_new` was asked.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        self.check_new(force)

    def take_again(self, settings: Mapping[str, Any]) -> ResumePoint:
        """Keep other processes out of the folder of a run until `close`; where to go on, see `check_resumable`.

        Raises:
            FileExistsError: another process trains there.
        """
        if self.path.is_dir():
            self._lock.acquire()
        return self.check_resumable(settings)

    def close(self) -> None:
        """Let other processes in."""
        self._lock.release()

    def check_resumable(self, settings: Mapping[str, Any]) -> ResumePoint:
        """Where to go on; nothing is changed.

        Args:
            settings: those of the resumed run, plain types as in train.yaml.

        Raises:
            FileNotFoundError: there is no run, or none of its checkpoints was finished.
            ValueError: a setting of `FIXED` is not what it was, or train.yaml or all checkpoints are damaged.
        """
        former = read_settings(self.path)
        if former is None:
            raise FileNotFoundError(f"out: {self.path} holds no run to resume")
        for name in FIXED:
            was, wanted = _get(former, name), _get(settings, name)
            if was != wanted:
                raise ValueError(f"{name}: got {wanted}, but the run to resume in {self.path} has {was}")
        whole, damaged = sort_checkpoints(self.checkpoints)
        if damaged and not whole:
            raise ValueError(f"out: no checkpoint is whole; --force starts again. {'; '.join(damaged.values())}")
        if not whole:
            raise FileNotFoundError(f"out: {self.path} holds no checkpoint to resume from; --force starts again")
        return ResumePoint(whole[-1], damaged)

    def set_aside(self, point: ResumePoint) -> list[str]:
        """Rename damaged checkpoints to NNNNNN.damaged, which nothing reads or deletes, and say so, a line for each."""
        said = []
        for path, reason in point.damaged.items():
            aside = path.with_name(f"{path.name}.damaged")
            remove(aside)
            path.rename(aside)
            said.append(f"{reason}; kept as {aside.name}, going on from {point.checkpoint.name}")
        return said

    def clear(self) -> None:
        """Make the folder, or empty it of a former run; files that are not a run's stay."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in CONTENTS:
            remove(self.path / name)

    def tidy(self) -> None:
        """Delete what a kill in the middle of writing left behind."""
        for folder in (self.path, self.checkpoints, self.samples):
            remove_leftovers(folder)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write train.yaml, which is a complete recipe."""
        with replace_file(self.path / SETTINGS, force=True) as temporary:
            temporary.write_text(write_recipe(settings), encoding="utf-8")

    def save(
        self,
        state: TrainingState,
        random: Sequence[Mapping[str, Any]] = (),
        quality: float | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint (see `save_checkpoint`), and the averaged model as config.json and model.safetensors."""
        save_checkpoint(self.checkpoints, state, random, quality=quality, notes=notes)
        deliver(state.averaged.model, self.path)

    def deliver_checkpoint(self, checkpoint: Path) -> None:
        """Put the averaged model of a whole checkpoint where `save` puts the newest one."""
        check_whole(checkpoint)
        for name in (CONFIG, AVERAGED):
            with replace_file(self.path / name, force=True) as temporary:
                shutil.copyfile(checkpoint / name, temporary)


def read_settings(run: str | Path) -> dict[str, Any] | None:
    """RUN/train.yaml, or None where there is none.

    Raises:
        ValueError: it is not a YAML table.
    """
    path = Path(run) / SETTINGS
    return read_recipe(path) if path.is_file() else None


def _get(settings: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings
