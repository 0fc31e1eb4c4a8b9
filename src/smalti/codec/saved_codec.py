"""The codec's file: the tensors of a `ContextModel` as safetensors, with the fingerprint of its tokenizer.

The file also contains the codec's own fingerprint, a SHA-256 of its content. A damaged file is refused, and a token
file names the codec that it was coded with.
"""

import hashlib
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from smalti.codec.context_codec import ContextCodec
from smalti.codec.context_model import ContextModel
from smalti.formats.atomic import replace_file
from smalti.formats.foreign import foreign
from smalti.formats.hub import fetch
from smalti.formats.token_codec import Grids

CODEC_FILE = "codec.safetensors"
"""Its name in the folder of a tokenizer."""
FORMAT, VERSION = "smalti codec", "1"


def make_codec(model: ContextModel, tokenizer: str, grids: Grids) -> ContextCodec:
    """A codec of the tokenizer with this fingerprint; `grids` are those of most images."""
    return ContextCodec(model, tokenizer, _fingerprint(_tensors(model), tokenizer, json.dumps(grids)), grids)


def write_codec(path: str | Path, codec: ContextCodec, force: bool = False) -> None:
    """Write a codec atomically.

    Raises:
        FileExistsError: `path` exists and `force` is off.
        OSError: it cannot be written.
    """
    words = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": codec.tokenizer,
        "grids": json.dumps(codec.grids),
        "fingerprint": codec.fingerprint,
    }
    with replace_file(path, force) as temporary:
        try:
            save_file(_tensors(codec.model), temporary, words)
        except SafetensorError as error:  # raised when the disk is full
            raise OSError(f"{path}: cannot be written ({error})") from error


def read_codec(path: str | Path) -> ContextCodec:
    """Read and check a codec.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a codec, a codec of another version, or an altered file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"codec: {path} is not a file; train a codec with smalti train-codec")
    try:
        with safe_open(path, "numpy") as opened:
            words = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"codec: {path} is not a readable safetensors file ({foreign(path) or error})") from error
    if (words.get("format"), words.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"codec: {path} is not a codec of version {VERSION}")
    if set(tensors) != {field.name for field in fields(ContextModel)}:
        raise ValueError(f"codec: {path}: got the tensors {', '.join(sorted(tensors))}, expected those of a codec")
    tokenizer, grids = words.get("tokenizer", ""), words.get("grids", "")
    if words.get("fingerprint") != _fingerprint(tensors, tokenizer, grids):
        raise ValueError(f"codec: {path} was altered (fingerprint differs)")
    return make_codec(ContextModel(**tensors), tokenizer, tuple(tuple(grid) for grid in json.loads(grids)))


def find_codec(run: str | Path, path: str = "") -> ContextCodec:
    """The codec at `path`; if `path` is empty, the codec in the tokenizer's folder or in its repository on the hub.

    Raises:
        FileNotFoundError: no codec.
        ValueError: a damaged codec.
    """
    if path or Path(run).is_dir():
        return read_codec(path or Path(run, CODEC_FILE))
    return read_codec(fetch(str(run), CODEC_FILE))


def _fingerprint(tensors: dict[str, np.ndarray], tokenizer: str, grids: str) -> str:
    """SHA-256 of the codec's content."""
    digest = hashlib.sha256(json.dumps([VERSION, tokenizer, grids]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _tensors(model: ContextModel) -> dict[str, Int[np.ndarray, "..."]]:
    """The parameters by name, little-endian and contiguous."""
    tensors = {field.name: np.ascontiguousarray(getattr(model, field.name)) for field in fields(model)}
    return {name: tensor.astype(tensor.dtype.newbyteorder("<"), copy=False) for name, tensor in tensors.items()}
