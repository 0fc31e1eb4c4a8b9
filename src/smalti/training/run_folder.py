"""The folder of a run: when it may be made or gone on with, and what is delivered into it.

Everything in it is written under another name first and then renamed, so a kill at any moment leaves a folder that can
be used and resumed.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from smalti.formats.atomic import replace_file
from smalti.training.checkpoint import check_whole, deliver, list_checkpoints, remove_leftovers, save_checkpoint
from smalti.training.state import TrainingState

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


class RunFolder:
    """One run folder, which may not exist yet."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

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
        visible = (path for path in self.path.iterdir() if not path.name.startswith("."))
        if not self.path.exists() or (self.path.is_dir() and not any(visible)):
            return
        if not (self.path / SETTINGS).is_file():
            raise FileExistsError(f"out: {self.path} exists and is not a run folder, choose another name")
        if not force:
            raise FileExistsError(f"out: {self.path} holds a run; --resume goes on with it, --force replaces it")

    def check_resumable(self, settings: Mapping[str, Any]) -> Path:
        """The checkpoint to go on from.

        Args:
            settings: those of the resumed run, plain types as in train.yaml.

        Raises:
            FileNotFoundError: there is no run, or none of its checkpoints was finished.
            ValueError: a setting of `FIXED` is not what it was, or the checkpoint is damaged.
        """
        if not (self.path / SETTINGS).is_file():
            raise FileNotFoundError(f"out: {self.path} holds no run to resume")
        former = yaml.safe_load((self.path / SETTINGS).read_text(encoding="utf-8"))
        for name in FIXED:
            was, wanted = _get(former, name), _get(settings, name)
            if was != wanted:
                raise ValueError(f"{name}: got {wanted}, but the run to resume in {self.path} has {was}")
        checkpoints = list_checkpoints(self.checkpoints)
        if not checkpoints:
            raise FileNotFoundError(f"out: {self.path} holds no checkpoint to resume from; --force starts again")
        check_whole(checkpoints[-1])
        return checkpoints[-1]

    def clear(self) -> None:
        """Make the folder, or empty it of a former run; files that are not a run's stay."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in CONTENTS:
            old = self.path / name
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Delete what a kill in the middle of writing left behind."""
        for folder in (self.path, self.checkpoints, self.samples):
            remove_leftovers(folder)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write train.yaml, which is a complete recipe."""
        with replace_file(self.path / SETTINGS, force=True) as temporary:
            text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
            temporary.write_text(text, encoding="utf-8")

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


def _get(settings: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings
