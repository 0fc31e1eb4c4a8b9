"""Reads checkpoint files of other projects: all containers, any nesting, without running code from them.

A checkpoint is a safetensors file, a pickle (.pth .pt .ckpt .bin .pth.tar .pkl), a TorchScript archive (.jit), a folder
with one of them and a config.json, or the folder of a pipeline, which has its tokenizer in a subfolder. Two files named
"encoder" and "decoder" in one folder are one checkpoint.
The tensors are at the top level or under "model", "state_dict", "ema" …, and their names may have prefixes ("module.",
"first_stage_model.", "_orig_mod."). `read_checkpoint` finds every table of tensors that could be a tokenizer.

Pickles can contain programs. They are read with `weights_only=True`, which refuses everything but plain data.
"""

import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from smalti.formats.foreign import foreign, is_safetensors
from smalti.zoo.published.torchscript import is_torchscript, read_torchscript

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".pth.tar", ".jit", ".pkl")
"""File extensions of weights; upper or lower case."""
HALVES = ("encoder", "decoder")
"""Names of the two files that form one model."""
FOLDER_FILES = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "autoencoder.jit",
)
"""Usual names of the weights in a folder, in the order of the search."""
PIPELINE_FOLDERS = ("vqvae", "movq", "vqgan", "vq_model")
"""Subfolders in which pipelines of several models keep their tokenizer."""
INDEX = ".index.json"
"""Ending of the name of the index file, which lists the shards of large weights."""
AVERAGES = "model_ema."
"""Prefix of averaged weights in Lightning checkpoints, whose names contain no dots."""
DEPTH = 5
"""Largest nesting depth of dictionaries."""


@dataclass(frozen=True)
class Candidate:
    """A table of tensors in a checkpoint that could be a tokenizer."""

    place: str
    """Keys that lead to the table, such as "state_dict"; "" at the top level."""
    prefix: str
    """Prefix that was removed from the names, such as "first_stage_model."."""
    tensors: dict[str, Tensor]
    """Tensors by name, without the prefix."""
    averages: dict[str, Tensor]
    """Averaged tensors, by names without dots; may be empty."""
    rest: tuple[str, ...]
    """Names in the same table without the prefix."""
    config: dict[str, Any]
    """Content of the config.json beside the file; {} without one."""
    yaml: dict[str, Any]
    """Content of the config.yaml beside the file, else of the YAML file with its name; {} without one."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file."""

    path: Path
    """The file that was read."""
    candidates: tuple[Candidate, ...]
    """Tables that could be a tokenizer, at least one."""
    entries: tuple[str, ...]
    """Keys at the top level of the file."""


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: no such file, or a folder without weights.
        ValueError: an unknown extension, a damaged file, a pickle that needs code to be read, or no tensors.
    """
    file = locate(Path(path))
    tree = _read_halves(file) if file.stem in HALVES else _read_shards(file) if _is_index(file) else _read(file)
    yaml_files = file.parent / "config.yaml", file.with_suffix(".yaml")
    found = (_sidecar(path, yaml.safe_load) for path in yaml_files)
    sidecars = _sidecar(file.parent / "config.json", json.loads), next(filter(None, found), {})
    candidates = tuple(
        candidate for place, tensors in _tables(tree, (), DEPTH) for candidate in _split(place, tensors, *sidecars)
    )
    if not candidates:
        raise ValueError(f"checkpoint: {file} holds no named tensors")
    return Checkpoint(file, candidates, tuple(str(key) for key in tree))


def locate(path: Path) -> Path:
    """The file with the weights: the path itself, or a file in this folder.

    In a folder, in this order: a file with a usual name; one with a variant in its name ("model.fp16.safetensors"); an
    index of shards; an encoder and a decoder file; the only file with weights; the same in a pipeline's subfolder.

    Raises:
        FileNotFoundError: no such path, or no weights in the folder.
        ValueError: a file of another kind, or several files with weights, none with a usual name.
    """
    if path.is_file():
        if not _is_weights(path) and not _is_index(path):
            raise ValueError(f"checkpoint: {path} ends in {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint: {path} does not exist")
    for folder in (path, *(path / name for name in PIPELINE_FOLDERS)):
        for name in (*FOLDER_FILES, *map(_variant, FOLDER_FILES), *(name + INDEX for name in FOLDER_FILES)):
            if found := sorted(folder.glob(name)):
                return found[0]
        for suffix in SUFFIXES:
            if all((folder / (half + suffix)).is_file() for half in HALVES):
                return folder / (HALVES[0] + suffix)
        others = [file for file in sorted(folder.glob("*")) if file.is_file() and _is_weights(file)]
        if len(others) > 1:
            raise ValueError(f"checkpoint: {folder} holds {', '.join(f.name for f in others)}; give one of these files")
        if others:
            return others[0]
    raise FileNotFoundError(f"checkpoint: the folder {path} holds none of {', '.join(FOLDER_FILES)}")


def _variant(name: str) -> str:
    """Glob pattern for a usual name with a variant: "model.*.safetensors"."""
    return f"{Path(name).stem}.*{Path(name).suffix}"


def _is_weights(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _is_index(path: Path) -> bool:
    return path.name.endswith(INDEX)


def _read_halves(file: Path) -> dict[str, Tensor]:
    """The tensors of an encoder and a decoder in two files, or of a whole model in a file with one of these names."""
    tensors: dict[str, Tensor] = {}
    for half in HALVES:
        path = file.with_name(half + file.suffix)
        if not path.is_file():
            continue
        found = max((table for _, table in _tables(_read(path), (), DEPTH)), key=len, default={})
        prefixed = any(name.startswith(f"{half}.") for name in found)
        tensors |= {name if prefixed else f"{half}.{name}": tensor for name, tensor in found.items()}
    missing = [half for half in HALVES if not any(name.startswith(f"{half}.") for name in tensors)]
    if tensors and missing:
        raise FileNotFoundError(f"checkpoint: {file} is one half, expected {missing[0]}{file.suffix} beside it")
    return tensors


def _read(file: Path) -> dict[Any, Any]:
    """The content of a file. The format is recognised by the content, not by the name."""
    if (what := foreign(file)) is not None:
        raise ValueError(f"checkpoint: {file} is {what}")
    if is_safetensors(file):
        try:
            return dict(load_file(file))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"checkpoint: {file} is not a readable safetensors file ({_one_line(error)})") from error
    if is_torchscript(file):
        return dict(read_torchscript(file))
    try:
        # torch would trust the ending of a name; its warnings advise to report what is refused below
        with file.open("rb") as opened, warnings.catch_warnings(action="ignore"):
            tree = torch.load(opened, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search("GLOBAL|Unsupported class", str(error)):
            raise ValueError(_refusal(file, error)) from error
        raise ValueError(f"checkpoint: {file} is neither a readable PyTorch file nor safetensors") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"checkpoint: {file} is not a readable PyTorch file ({_one_line(error)})") from error
    if not isinstance(tree, Mapping):
        raise ValueError(f"checkpoint: {file} holds a {type(tree).__name__}, expected a dictionary of tensors")
    return dict(tree)


def _refusal(file: Path, error: Exception) -> str:
    """Message: why a pickle was refused, and what to do."""
    wanted = re.search(r"(?:Unsupported (?:global|class): GLOBAL |WeightsUnpickler error: )([^\n]*)", str(error))
    reason = wanted[1] if wanted else _one_line(error)
    return (
        f"checkpoint: {file} was refused: it holds more than tensors and plain data ({reason.strip()[:200]}), and "
        "reading it could run any program. If you trust its source, convert it once, in a container without network "
        "and without valuable files: python -c \"import torch, safetensors.torch as s; c = torch.load('IN', "
        "map_location='cpu', weights_only=False); c = c.state_dict() if hasattr(c, 'state_dict') else "
        "c.get('state_dict', c); s.save_file({k: v.contiguous() for k, v in c.items() if torch.is_tensor(v)}, "
        "'OUT.safetensors')\"; then load OUT.safetensors. A file with a whole module also needs its publisher's "
        "package in the container"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all shards; of a large model that contains a tokenizer, only the shards of the tokenizer."""
    try:
        shards = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint: {index} is not an index of shards") from error
    fronts = {match[1] for name in shards if (match := re.match(r"(|.*\.)quantize\.", name))}
    inside = [shard for name, shard in shards.items() if name.startswith(tuple(fronts))]
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(inside or shards.values())):
        if Path(shard).name != shard:
            raise ValueError(f"checkpoint: {index} names the shard {shard!r}, expected a file in the same folder")
        if not (index.parent / shard).is_file():
            raise ValueError(f"checkpoint: {index} names the shard {shard!r}, which does not exist")
        tensors |= _read(index.parent / shard)
    return tensors


def _sidecar(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The configuration beside the weights; {} if it is missing or not a dictionary."""
    if not path.is_file():
        return {}
    try:
        config = parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _tables(tree: Mapping[Any, Any], place: tuple[str, ...], depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All dictionaries that contain named tensors, each with the keys that lead to it."""
    tensors = {key: value for key, value in tree.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield ".".join(place), tensors
    for key, value in tree.items():
        if isinstance(key, str) and isinstance(value, Mapping) and depth > 0:
            yield from _tables(value, (*place, key), depth - 1)


def _split(
    place: str, tensors: dict[str, Tensor], config: dict[str, Any], config_yaml: dict[str, Any]
) -> Iterator[Candidate]:
    """The tokenizers in one table: one for each prefix with an encoder and a decoder or quantizer."""
    tensors = {_unwrapped(name): tensor for name, tensor in tensors.items()}
    flat = {name: average for name in tensors if (average := _average(name)) is not None}
    averages = {average: tensors[name] for name, average in flat.items()}
    tensors = {name: value for name, value in tensors.items() if name not in flat}
    found = {match[1] for name in tensors if (match := re.match(r"(|.*?\.)(?:encoder)\.", name))}
    halves = ("decoder.", "quantize.")
    prefixes = sorted(
        (
            prefix
            for prefix in found
            if any(name.startswith((*(prefix + half for half in halves),)) for name in tensors)
        ),
        key=len,
    )
    for prefix in prefixes or [""]:
        inside = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        rest = tuple(name for name in tensors if not name.startswith(prefix))
        dotless = prefix.replace(".", "")
        averaged = {name.removeprefix(dotless): tensor for name, tensor in averages.items()}
        yield Candidate(place, prefix, inside, averaged, rest, config, config_yaml)


def _average(name: str) -> str | None:
    """The averaged tensor's name without dots, from Lightning's form or Cosmos' with "-" for dots; None: no average."""
    if name.startswith(AVERAGES):
        return name.removeprefix(AVERAGES)
    return name.removeprefix("ema.").replace("-", "") if re.match(r"ema\.\w+-", name) else None


def _unwrapped(name: str) -> str:
    """A name without the prefixes of torch.compile and data parallelism."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _one_line(error: Exception) -> str:
    """First sentence of an error message."""
    return " ".join(str(error).split()).split(". ")[0][:200] or type(error).__name__
