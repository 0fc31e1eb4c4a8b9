"""Checkpoints: all state that a run needs to continue as if it had not stopped.

RUN/checkpoints/NNNNNN/ (NNNNNN: completed steps) holds

    config.json, model.safetensors    the averaged model, for `smalti.load` and all commands
    trained.safetensors               the trained weights and buffers
    training.pt                       optimizer, scaler, further networks and their optimizers, random states of all
                                      processes; tensors and plain containers, read with weights_only=True
    checkpoint.json                   format and version, step, skipped steps, quality, notes, a SHA-256 of each file,
                                      and a SHA-256 of this content

A checkpoint is written under a hidden name and renamed when complete. It is renamed again before deletion. So a
directory with a number as its name was complete. The newest checkpoints and the best one are kept.
The step is also the position in the data: batch n of a run depends only on the seed and n.
"""

import math
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

from smalti.formats.atomic import remove, replace_file, replace_folder
from smalti.formats.sealed_json import open_sealed, seal
from smalti.formats.weights import file_sha256
from smalti.models import SavedModel
from smalti.training.optimization import load_moments, regrouped
from smalti.training.state import TrainingState

FORMAT = "smalti checkpoint"
VERSION, OLD_VERSIONS = 3, (2,)
"""Version 2 had no checksum of checkpoint.json, and other parameter groups in the optimizer."""
CONFIG, AVERAGED = "config.json", "model.safetensors"
TRAINED, TRAINING, MANIFEST = "trained.safetensors", "training.pt", "checkpoint.json"
FILES = (CONFIG, AVERAGED, TRAINED, TRAINING)
LEFTOVERS = (".*.????????.tmp*", ".*.old.tmp", ".model-*")
"""Names of incomplete files that a killed process leaves behind."""
FIELDS = {"step": int, "skipped": int, "quality": float | int | None, "notes": dict, "sha256": dict}
"""Keys of checkpoint.json besides format and version, with their types."""


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
        quality: quality of the averaged model, higher is better; None: not measured.
        notes: further information in plain JSON types; see `read_notes`.
        keep: number of newest checkpoints to keep, this one included.

    Returns:
        The directory of the checkpoint.

    Raises:
        OSError: the checkpoint cannot be written; existing checkpoints are unchanged.
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
            "step": state.step,
            "skipped": state.skipped,
            "quality": quality if quality is not None and math.isfinite(quality) else None,
            "notes": dict(notes or {}),
            "sha256": {name: file_sha256(temporary / name) for name in FILES},
        }
        (temporary / MANIFEST).write_bytes(seal(FORMAT, VERSION, manifest))
    kept = {*list_checkpoints(folder)[-keep:], best_checkpoint(folder)}
    for old in list_checkpoints(folder):
        if old not in kept:
            _delete(old)
    return path


def deliver(model: SavedModel, folder: Path) -> None:
    """`save_pretrained` into a directory that may hold an older version; each file is replaced atomically."""
    with writing(folder), tempfile.TemporaryDirectory(prefix=".model-", dir=folder) as temporary:
        model.save_pretrained(temporary)
        for name in (CONFIG, AVERAGED):
            with replace_file(folder / name, force=True) as moved:
                Path(temporary, name).rename(moved)


def load_checkpoint(path: str | Path, state: TrainingState) -> list[dict[str, Any]]:
    """Read a checkpoint into a state of the same model from `start_state`.

    Weight decay and betas keep their values from `start_state`. Random states are returned, not set, as code between
    reading and the first step may draw random numbers.

    Returns:
        The random state of each process, for `restore_random_state`.

    Raises:
        ValueError: no checkpoint, or one of another version or model, damaged or incomplete.
    """
    path = Path(path)
    manifest = check_whole(path)
    try:
        load_model(state.model, path / TRAINED)
        load_model(state.averaged.model, path / AVERAGED)
        rest = torch.load(path / TRAINING, map_location="cpu", weights_only=True)
        moments = rest["optimizer"]
        if manifest["version"] in OLD_VERSIONS:
            moments = regrouped(moments, state.model, state.optimizer)
        load_moments(state.optimizer, moments)
        state.scaler.load_state_dict(rest["scaler"])
        for name, module in state.modules.items():
            if name not in rest["modules"]:
                raise ValueError(f"it was written without {name}; start a new run from its weights with init_from=RUN")
            module.load_state_dict(rest["modules"][name])
        for name, optimizer in state.optimizers.items():
            load_moments(optimizer, rest["optimizers"][name])
    except (SafetensorError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path}: checkpoint does not fit this model ({reason})") from error
    state.step, state.skipped = int(manifest["step"]), int(manifest["skipped"])
    return rest["random"]


def check_whole(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, after a check of all its files.

    Raises:
        ValueError: a file is missing, unreadable or changed; the message names it.
    """
    manifest = read_manifest(path)
    for file, digest in manifest["sha256"].items():
        try:
            found = file_sha256(path / file)
        except OSError as error:
            raise ValueError(f"{path / file}: cannot be read ({error.strerror})") from error
        if found != digest:
            raise ValueError(f"{path / file}: is damaged, its SHA-256 differs")
    return manifest


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The content of checkpoint.json, after a check.

    Raises:
        ValueError: it is missing, unreadable, changed, or has another format or version.
    """
    file = Path(path) / MANIFEST
    try:
        version, content = open_sealed(file.read_bytes(), FORMAT, VERSION, OLD_VERSIONS)
        wrong = [field for field, kind in FIELDS.items() if not isinstance(content.get(field), kind)]
        if wrong or set(content["sha256"]) != set(FILES):
            raise ValueError(f"{', '.join(wrong) or 'sha256'}: invalid value")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{file}: is damaged ({error})") from error
    return {"version": version, **content}


def read_notes(path: str | Path) -> dict[str, Any]:
    """The notes of a checkpoint; ValueError if checkpoint.json is damaged."""
    return dict(read_manifest(path)["notes"])


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Directories named as checkpoints in RUN/checkpoints, oldest first; empty if there is no such directory."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    numbered = (path for path in folder.iterdir() if path.name.isascii() and path.name.isdecimal())
    return sorted(numbered, key=lambda path: int(path.name))


def sort_checkpoints(folder: str | Path) -> tuple[list[Path], dict[Path, str]]:
    """The intact checkpoints in RUN/checkpoints, oldest first, and the damaged ones, each with its defect."""
    whole, damaged = [], {}
    for path in list_checkpoints(folder):
        try:
            check_whole(path)
            whole.append(path)
        except ValueError as error:
            damaged[path] = str(error)
    return whole, damaged


def best_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint with the highest quality in RUN/checkpoints, the newest of equals; None if none was measured.

    Checkpoints with a damaged checkpoint.json are ignored.
    """
    measured = []
    for path in list_checkpoints(folder):
        try:
            quality = read_manifest(path)["quality"]
        except ValueError:
            continue
        if quality is not None and math.isfinite(quality):
            measured.append((quality, path))
    return max(measured, key=lambda pair: (pair[0], int(pair[1].name)))[1] if measured else None


def remove_leftovers(folder: str | Path) -> None:
    """Delete incomplete files that a killed process left in a directory."""
    for pattern in LEFTOVERS:
        for path in Path(folder).glob(pattern):
            remove(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context that turns write errors of safetensors and torch into an OSError."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        free = shutil.disk_usage(path.parent).free // 2**20
        raise OSError(f"{path} cannot be written, {free} MiB are free on its disk ({reason})") from error


def _delete(path: Path) -> None:
    """Rename, then delete, so that a killed process leaves no incomplete checkpoint under a number."""
    doomed = path.with_name(f".{path.name}.old.tmp")
    path.rename(doomed)
    remove(doomed)
