"""Checkpoints: everything a run needs to go on as if it had never stopped.

RUN/checkpoints/NNNNNN/ (NNNNNN: completed steps) holds

    config.json, model.safetensors    the averaged model, which `smalti.load` and every command take
    trained.safetensors               the trained weights and buffers
    training.pt                       optimizer, scaler, further networks and their optimizers, random states of every
                                      process; tensors and plain containers, read with weights_only=True
    checkpoint.json                   format and version, step, skipped steps, quality, notes, a SHA-256 of each file

A checkpoint is written under a hidden name and renamed when complete, and renamed again before it is deleted, so a
folder with a number for a name is whole. The newest ones are kept, and the best.
The position in the data is the step: batch number n of a run is a function of the seed and n alone.
"""

import json
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from smalti.formats.atomic import replace_folder
from smalti.formats.saved_model import SavedModel
from smalti.formats.weights import file_sha256
from smalti.training.state import TrainingState

FORMAT = "smalti checkpoint"
VERSION = 2
CONFIG, AVERAGED = "config.json", "model.safetensors"
TRAINED, TRAINING, MANIFEST = "trained.safetensors", "training.pt", "checkpoint.json"
LEFTOVERS = (".*.????????.tmp*", ".*.old.tmp", ".model-*")
"""Names of what a kill in the middle of writing leaves behind."""


def save_checkpoint(
    folder: str | Path,
    state: TrainingState,
    random: Sequence[Mapping[str, Any]] = (),
    *,
    quality: float | None = None,
    notes: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write `folder`/NNNNNN, replacing one of the same step, and delete all but the newest `keep` and the best.

    Args:
        folder: RUN/checkpoints; created if it does not exist.
        state: what to write.
        random: the random state of each process, in the order of the ranks; see `random_state`.
        quality: how good the averaged model is, the higher the better; None: not measured.
        notes: whatever else should be known when it is read, plain JSON types; see `read_notes`.
        keep: how many of the newest checkpoints to leave, this one included.

    Returns:
        The checkpoint's own folder.

    Raises:
        OSError: it cannot be written; those that are there stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{state.step:06d}"
    rest = {
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "modules": {name: module.state_dict() for name, module in state.modules.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in state.optimizers.items()},
        "random": list(random),
    }
    with writing(path), replace_folder(path, force=True) as temporary:
        deliver(state.averaged.model, temporary)
        save_model(state.model, str(temporary / TRAINED))
        torch.save(rest, temporary / TRAINING)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "step": state.step,
            "skipped": state.skipped,
            "quality": quality,
            "notes": dict(notes or {}),
            "sha256": {name: file_sha256(temporary / name) for name in (CONFIG, AVERAGED, TRAINED, TRAINING)},
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    kept = {*list_checkpoints(folder)[-keep:], best_checkpoint(folder)}
    for old in list_checkpoints(folder):
        if old not in kept:
            _delete(old)
    return path


def deliver(model: SavedModel, folder: Path) -> None:
    """`save_pretrained` into a folder that may hold a former version: each file is replaced at once or not at all."""
    with writing(folder), tempfile.TemporaryDirectory(prefix=".model-", dir=folder) as temporary:
        model.save_pretrained(temporary)
        for name in (CONFIG, AVERAGED):  # not the model card, which is for the hub
            Path(temporary, name).replace(folder / name)


def load_checkpoint(path: str | Path, state: TrainingState) -> list[dict[str, Any]]:
    """Read a checkpoint into a state that `start_state` made for the same model.

    Random states are returned, not set: what happens between reading and the first step may draw random numbers.

    Returns:
        What `restore_random_state` takes, for each process.

    Raises:
        FileNotFoundError: the folder or a file of it is missing.
        ValueError: not a checkpoint, of another version, damaged, or of another model.
    """
    path = Path(path)
    manifest = check_whole(path)
    try:
        load_model(state.model, path / TRAINED)
        load_model(state.averaged.model, path / AVERAGED)
        rest = torch.load(path / TRAINING, map_location="cpu", weights_only=True)
        state.optimizer.load_state_dict(rest["optimizer"])
        state.scaler.load_state_dict(rest["scaler"])
        for name, module in state.modules.items():
            if name not in rest["modules"]:
                raise ValueError(f"it was written without {name}; --init-from takes its weights into a new run")
            module.load_state_dict(rest["modules"][name])
        for name, optimizer in state.optimizers.items():
            optimizer.load_state_dict(rest["optimizers"][name])
    except (SafetensorError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path}: does not fit this model ({reason})") from error
    state.step, state.skipped = int(manifest["step"]), int(manifest["skipped"])
    return rest["random"]


def check_whole(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are what they were when written; ValueError if they are not."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        name, version, files = (manifest[key] for key in ("format", "version", "sha256"))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path / MANIFEST}: is damaged ({error})") from error
    if (name, version) != (FORMAT, VERSION):
        raise ValueError(f"{path / MANIFEST}: got {name} version {version}, this is for {FORMAT} version {VERSION}")
    for file, digest in files.items():
        if file_sha256(path / file) != digest:
            raise ValueError(f"{path / file}: is damaged, delete {path} to go on from the checkpoint before it")
    return manifest


def read_notes(path: str | Path) -> dict[str, Any]:
    """The notes of a checkpoint that `load_checkpoint` has read without complaint."""
    return json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8"))["notes"]


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in RUN/checkpoints, oldest first; empty if there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def best_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of the highest quality in RUN/checkpoints, the newest of equals; None if none was measured."""
    measured = []
    for path in list_checkpoints(folder):
        quality = json.loads((path / MANIFEST).read_text(encoding="utf-8")).get("quality")
        if quality is not None:
            measured.append((quality, path))
    return max(measured, key=lambda pair: (pair[0], int(pair[1].name)))[1] if measured else None


def remove_leftovers(folder: str | Path) -> None:
    """Delete what a kill in the middle of writing left behind in a folder."""
    for pattern in LEFTOVERS:
        for path in Path(folder).glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of safetensors and torch about a file that cannot be written, as the OSError that they hide."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        free = shutil.disk_usage(path.parent).free // 2**20
        raise OSError(f"{path} cannot be written, {free} MiB are free on its disk ({reason})") from error


def _delete(path: Path) -> None:
    """Under another name first: a kill in the middle must not leave half a checkpoint under a number."""
    doomed = path.with_name(f".{path.name}.old.tmp")
    path.rename(doomed)
    shutil.rmtree(doomed)
