"""The run directory: when it may be created or resumed, and the files that a run delivers into it.

Every file is written under a temporary name and then renamed, so a run killed at any moment leaves a directory that can
be used and resumed.

Only one process at a time trains in a run directory: RUN/.lock is locked by flock(2) and holds the process id. The
system releases the lock when the process ends, so the lock file of a killed process blocks nobody. Without flock (on
Windows and some network file systems) there is no lock.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.checks import RUN_SETTINGS, check_new_run
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

CONTENTS = (
    RUN_SETTINGS,
    "config.json",
    "model.safetensors",
    "log.jsonl",
    "tensorboard",
    "samples",
    "checkpoints",
    "tokenizer",
)
"""Content of a run directory; `clear` deletes these files and nothing else."""

FIXED = (
    *("model", "model_args", "init_from", "input", "prior", "prior_args", "validation"),
    *("seed", "optimization.batch_size"),
)
"""Settings that must not change when a run is resumed."""


@dataclass(frozen=True)
class ResumePoint:
    """Where a run resumes."""

    checkpoint: Path
    """The newest intact checkpoint."""
    damaged: Mapping[Path, str]
    """Damaged checkpoints, each with its defect."""


class FolderLock:
    """The lock of one directory, held by this process or not."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / ".lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Lock the directory, which must exist; no effect if this object already holds the lock.

        Raises:
            FileExistsError: another process holds the lock; the message names it.
        """
        while self._descriptor is None and fcntl is not None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 20).decode() or "(unknown id)"
                os.close(descriptor)
                raise FileExistsError(
                    f"out: process {holder} trains in {self.folder}; wait until it ends or choose another name"
                ) from None
            except OSError:  # a file system without locks
                os.close(descriptor)
                return
            if self._is_named(descriptor):
                self._descriptor = descriptor
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
            else:  # the former holder has deleted the file since it was opened
                os.close(descriptor)

    def release(self) -> None:
        """Delete the lock file and release the lock; no effect if the lock is not held."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _is_named(self, descriptor: int) -> bool:
        """Whether the open file still is the file at the path."""
        return self.path.exists() and os.path.samestat(os.fstat(descriptor), self.path.stat())


class RunFolder:
    """A run directory, which need not exist yet."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = FolderLock(self.path)

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """The directory of the sample pictures."""
        return self.path / "samples"

    def check_new(self, force: bool) -> None:
        """See `check_new_run`."""
        check_new_run(self.path, force=force)

    def take_new(self, force: bool) -> None:
        """Create the directory and lock it until `close`.

        Raises:
            FileExistsError: another process trains there, or has created a run there since `check_new`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        self.check_new(force)

    def take_again(self, settings: Mapping[str, Any]) -> ResumePoint:
        """Lock the directory of a run until `close`; return where to resume, see `check_resumable`.

        Raises:
            FileExistsError: another process trains there.
        """
        if self.path.is_dir():
            self._lock.acquire()
        return self.check_resumable(settings)

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def check_resumable(self, settings: Mapping[str, Any]) -> ResumePoint:
        """Where to resume; changes nothing.

        Args:
            settings: settings of the resumed run, plain types as in train.yaml.

        Raises:
            FileNotFoundError: there is no run, or it has no complete checkpoint.
            ValueError: a setting of `FIXED` has changed, or train.yaml or all checkpoints are damaged.
        """
        former = read_settings(self.path)
        if former is None:
            raise FileNotFoundError(f"out: {self.path} holds no run to resume")
        for name in FIXED:
            was, wanted = _get(former, name), _get(settings, name)
            if was != wanted:
                raise ValueError(f"{name}: got {wanted}, expected {was} as in the run to resume, {self.path}")
        whole, damaged = sort_checkpoints(self.checkpoints)
        if damaged and not whole:
            reasons = "; ".join(damaged.values())
            raise ValueError(f"out: all checkpoints are damaged; {self._instead()}. {reasons}")
        if not whole:
            raise FileNotFoundError(f"out: {self.path} holds no checkpoint to resume; {self._instead()}")
        return ResumePoint(whole[-1], damaged)

    def _instead(self) -> str:
        """Advice where nothing can be resumed; `force` would delete weights that may be all that is left."""
        if (self.path / "model.safetensors").is_file():
            return f"its weights are there: train from them with init_from {self.path} and another out"
        return "start again with force"

    def set_aside(self, point: ResumePoint) -> list[str]:
        """Rename damaged checkpoints to NNNNNN.damaged, which are never read or deleted; return a message for each."""
        said = []
        for path, reason in point.damaged.items():
            aside = path.with_name(f"{path.name}.damaged")
            remove(aside)
            path.rename(aside)
            said.append(f"{reason}; renamed to {aside.name}, resuming from {point.checkpoint.name}")
        return said

    def clear(self) -> None:
        """Create the directory, or delete an older run in it; other files are kept."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in CONTENTS:
            remove(self.path / name)

    def tidy(self) -> None:
        """Delete incomplete files of a killed process."""
        for folder in (self.path, self.checkpoints, self.samples):
            remove_leftovers(folder)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write train.yaml, which is a complete recipe."""
        with replace_file(self.path / RUN_SETTINGS, force=True) as temporary:
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
        """Copy the averaged model of an intact checkpoint to the place of the newest model."""
        check_whole(checkpoint)
        for name in (CONFIG, AVERAGED):
            with replace_file(self.path / name, force=True) as temporary:
                shutil.copyfile(checkpoint / name, temporary)


def read_settings(run: str | Path) -> dict[str, Any] | None:
    """RUN/train.yaml, or None if it does not exist.

    Raises:
        ValueError: it is not a YAML mapping.
    """
    path = Path(run) / RUN_SETTINGS
    try:
        return read_recipe(path) if path.is_file() else None
    except ValueError as error:
        raise ValueError(f"{error}; the file is damaged") from error


def _get(settings: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings
