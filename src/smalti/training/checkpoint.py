"""Checkpoints: everything a run needs to go on as if it had never stopped.

RUN/checkpoints/NNNNNN/ (NNNNNN: completed steps) holds

    model.safetensors       the trained weights and buffers
    averaged.safetensors    the averaged ones
    training.pt             optimizer state and random states; tensors and plain containers, read with weights_only=True
    checkpoint.json         format and version, step, notes, a SHA-256 of each file above

A checkpoint is written under a hidden name and renamed when complete, so a folder with a number for a name is whole.
The position in the data is the step: batch number n of a run is a function of the seed and n alone.
"""

import hashlib
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from smalti.formats.atomic import replace_folder
from smalti.training.loop import TrainingState

FORMAT = "smalti checkpoint"
VERSION = 1
MODEL, AVERAGED, TRAINING, MANIFEST = "model.safetensors", "averaged.safetensors", "training.pt", "checkpoint.json"


def save_checkpoint(
    folder: str | Path, state: TrainingState, *, notes: Mapping[str, Any] | None = None, keep: int = 2
) -> Path:
    """Write `folder`/NNNNNN, replacing one of the same step, and delete all but the newest `keep`.

    Args:
        folder: RUN/checkpoints; created if it does not exist.
        state: what to write, together with torch's random state.
        notes: whatever else should be known when it is read, plain JSON types; see `read_notes`.
        keep: how many checkpoints to leave, this one included.

    Returns:
        The checkpoint's own folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{state.step:06d}"
    with replace_folder(path, force=True) as temporary:
        save_model(state.model, str(temporary / MODEL))
        save_model(state.averaged.model, str(temporary / AVERAGED))
        rest = {"optimizer": state.optimizer.state_dict(), "random": _random_state(state)}
        torch.save(rest, temporary / TRAINING)
        files = {name: _sha256(temporary / name) for name in (MODEL, AVERAGED, TRAINING)}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "step": state.step,
            "notes": dict(notes or {}),
            "sha256": files,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def load_checkpoint(path: str | Path, state: TrainingState) -> dict[str, Any]:
    """Read a checkpoint into a state that `start_state` made for the same model.

    Random states are returned, not set: what happens between reading and the first step may draw random numbers.

    Returns:
        What `restore_random_state` takes.

    Raises:
        FileNotFoundError: the folder or a file of it is missing.
        ValueError: not a checkpoint, of another version, damaged, or of another model.
    """
    path = Path(path)
    step = _checked_step(path)
    try:
        load_model(state.model, path / MODEL)
        load_model(state.averaged.model, path / AVERAGED)
        rest = torch.load(path / TRAINING, map_location="cpu", weights_only=True)
        state.optimizer.load_state_dict(rest["optimizer"])
    except (SafetensorError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path}: does not fit this model ({reason})") from error
    state.step = step
    return rest["random"]


def read_notes(path: str | Path) -> dict[str, Any]:
    """The notes of a checkpoint that `load_checkpoint` has read without complaint."""
    return json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8"))["notes"]


def restore_random_state(random: dict[str, Any]) -> None:
    """Put torch's generators where they were when the checkpoint was written."""
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in RUN/checkpoints, oldest first; empty if there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def _random_state(state: TrainingState) -> dict[str, Any]:
    device = next(state.model.parameters()).device
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def _checked_step(path: Path) -> int:
    """The step of a checkpoint whose files are what they were when written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        name, version, step, files = (manifest[key] for key in ("format", "version", "step", "sha256"))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path / MANIFEST}: is damaged ({error})") from error
    if (name, version) != (FORMAT, VERSION):
        raise ValueError(f"{path / MANIFEST}: got {name} version {version}, this is for {FORMAT} version {VERSION}")
    for file, digest in files.items():
        if _sha256(path / file) != digest:
            raise ValueError(f"{path / file}: is damaged, delete {path} to go on from the checkpoint before it")
    return int(step)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
