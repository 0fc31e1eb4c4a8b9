"""The folder of a saved model: config.json (class name and constructor arguments) and model.safetensors (weights).

The folder may be local or on the Hugging Face hub. The methods have the hub's usual names. This file does not depend on
the kind of model, tokenizer or prior.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from smalti.formats.arguments import construct
from smalti.formats.atomic import replace_file
from smalti.formats.foreign import foreign
from smalti.formats.hub import fetch, upload


def read_config(path: Path) -> dict[str, Any]:
    """Read the table from a config.json.

    Raises:
        ValueError: the file is not a JSON table. The message names the file.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError includes UnicodeDecodeError
        raise ValueError(f"{path}: not JSON in UTF-8 ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: got {type(config).__name__}, expected a table")
    return config


Model = TypeVar("Model", bound="SavedModel")

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""The two files of a saved model."""

CHECKSUM = "sha256"
"""Entry in the metadata of model.safetensors: `checksum` of its tensors."""

MODEL_CARD = """---
library_name: smalti
tags: [{tag}]
---

A smalti {kind}. Load it with `smalti.{load}("{repository}")`.
"""
"""README.md of a model on the hub."""


class SavedModel(nn.Module, ABC):
    """A model with `save_pretrained`, `from_pretrained`, `push_to_hub` and a fingerprint."""

    hub_tag: ClassVar[str] = "saved-model"
    """Tag of the model on the hub."""
    loader: ClassVar[str] = ""
    """Name of the smalti function that loads it."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments in plain JSON types."""

    def training_state(self) -> dict[str, Any]:
        """Further entries of config.json: state for resuming training that does not change the model's function. The
        fingerprint ignores it. Plain JSON types; a class that returns any must accept it in `from_config`."""
        return {}

    @classmethod
    def from_config(cls: type[Model], config: Mapping[str, Any]) -> Model:
        """A new model from the table that `config` returned.

        Raises:
            ValueError: the table does not describe a valid model.
        """
        return construct(cls, config)

    @property
    def fingerprint(self) -> str:
        """64 hex digits that change when the configuration or any weight changes (SHA-256)."""
        digest = hashlib.sha256(json.dumps(self._typed_config(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json (constructor arguments and class name) and model.safetensors into a folder.

        Raises:
            OSError: the folder cannot be written to, or the disk is full.
        """
        folder = Path(folder)
        text = json.dumps({**self._typed_config(), **self.training_state()}, indent=2, sort_keys=True)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with replace_file(folder / WEIGHTS, force=True) as temporary:
                save_model(self, str(temporary), {CHECKSUM: checksum(self.state_dict().values())})
        except SafetensorError as error:  # raised when the disk is full
            raise OSError(f"{folder}: cannot write the weights ({error})") from error
        with replace_file(folder / CONFIG, force=True) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls: type[Model], model: str | Path, *, map_location: str = "cpu", strict: bool = True, **hub: Any
    ) -> Model:
        """Load a model that `save_pretrained` wrote, in eval mode.

        Args:
            model: the folder, or a name on the hub ("user/name").
            map_location: the device of the model.
            strict: whether missing or unexpected weights are an error.
            hub: for a model on the hub, options of `hf_hub_download`: `revision`, `token`, `cache_dir` …

        Raises:
            FileNotFoundError: a file is missing in the folder.
            ValueError: a file is damaged, or does not match this class or the other file.
        """
        folder = Path(model)
        here = folder.is_dir()
        config_path, path = (folder / name if here else fetch(str(model), name, **hub) for name in (CONFIG, WEIGHTS))
        arguments = {name: value for name, value in read_config(config_path).items() if name != "type"}
        try:
            made = cls.from_config(arguments)
        except ValueError as error:
            raise ValueError(f"{folder}/config.json does not describe a {cls.__name__}: {error}") from error
        try:
            check_tensors(path)
            load_model(made, path, strict=strict)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a readable safetensors file ({foreign(path) or error})") from error
        except RuntimeError as error:
            raise ValueError(f"{path}: weights do not fit config.json: {' '.join(str(error).split())}") from error
        return made.to(map_location).eval()

    def push_to_hub(
        self,
        repository: str,
        *,
        message: str = "Upload a model of smalti",
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Upload the files of `save_pretrained` and a README.md with loading instructions.

        Args:
            repository: "user/name". Created if it does not exist.
            message: commit message.
            private: whether a new repository is private; None: the account's default.
            token: access token; None: the token of `hf auth login`.

        Returns:
            The URL of the commit.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            kind = type(self).__name__
            card = MODEL_CARD.format(tag=self.hub_tag, kind=kind, load=self.loader, repository=repository)
            Path(folder, "README.md").write_text(card, encoding="utf-8")
            return upload(Path(folder), repository, message=message, private=private, token=token)

    def _typed_config(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.config()}


def checksum(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of tensors, independent of their names and order; equal tensors count once, as in a safetensors file."""
    digests = set()
    for tensor in tensors:
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
        digests.add(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def check_tensors(path: str | Path) -> None:
    """Compare the tensors of a safetensors file with its checksum. Files of other programs have none.

    Raises:
        ValueError: they differ.
    """
    with safe_open(path, framework="pt") as file:
        expected = (file.metadata() or {}).get(CHECKSUM)
        if expected and checksum(file.get_tensor(name) for name in file.keys()) != expected:  # noqa: SIM118
            raise ValueError(f"{path}: is damaged, its tensors differ from the checksum in the file")


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
