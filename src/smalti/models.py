"""The folder of a saved model: config.json (class name and constructor arguments) and model.safetensors (weights).

The folder may lie on this machine or on the Hugging Face hub; the methods have the names that models of the hub have.
What kind of model it is, tokenizer or prior, this file does not know.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from smalti.formats.arguments import construct
from smalti.formats.atomic import replace_file
from smalti.formats.foreign import foreign
from smalti.formats.hub import fetch, upload


def read_config(path: Path) -> dict[str, Any]:
    """The table in a config.json.

    Raises:
        ValueError: it is none; the message names the file.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of which UnicodeDecodeError is one
        raise ValueError(f"{path}: not JSON in UTF-8 ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: got {type(config).__name__}, expected a table")
    return config


Model = TypeVar("Model", bound="SavedModel")

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""The two files of a saved model."""

MODEL_CARD = """---
library_name: smalti
tags: [{tag}]
---

A {kind} of smalti: `smalti.{load}("{repository}")`.
"""
"""README.md of a model on the hub."""


class SavedModel(nn.Module, ABC):
    """A model with `save_pretrained`, `from_pretrained`, `push_to_hub` and a fingerprint."""

    hub_tag: ClassVar[str] = "saved-model"
    """What the hub files it under."""
    loader: ClassVar[str] = ""
    """The function of smalti that loads it."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments in plain JSON types."""

    def training_state(self) -> dict[str, Any]:
        """What config.json holds beside `config`: it decides how training goes on and makes no other model, so the
        fingerprint leaves it out. Plain JSON types; a class that returns any takes it in `from_config`."""
        return {}

    @classmethod
    def from_config(cls: type[Model], config: Mapping[str, Any]) -> Model:
        """A fresh model from what `config` returned.

        Raises:
            ValueError: it describes none.
        """
        return construct(cls, config)

    @property
    def fingerprint(self) -> str:
        """64 hex digits that change when the configuration or any weight changes (SHA-256)."""
        digest = hashlib.sha256(json.dumps(self._typed_config(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json (constructor arguments and class name) and model.safetensors into a folder.

        Raises:
            OSError: the folder cannot be written to, or the disk is full.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with replace_file(folder / WEIGHTS, force=True) as temporary:
                save_model(self, str(temporary))
        except SafetensorError as error:  # its word for a full disk
            raise OSError(f"{folder}: weights cannot be written ({error})") from error
        text = json.dumps({**self._typed_config(), **self.training_state()}, indent=2, sort_keys=True)
        with replace_file(folder / CONFIG, force=True) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls: type[Model], model: str | Path, *, map_location: str = "cpu", strict: bool = True, **hub: Any
    ) -> Model:
        """The model that `save_pretrained` wrote, in eval mode.

        Args:
            model: the folder, or a name on the hub ("user/name").
            map_location: the device that it goes to.
            strict: whether a missing or surplus weight is an error.
            hub: of a model on the hub, what `huggingface_hub.hf_hub_download` takes: `revision`, `token`, `cache_dir` …

        Raises:
            FileNotFoundError: the folder lacks a file.
            ValueError: a file that is damaged, or does not fit this class or the other file.
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
        """Upload what `save_pretrained` writes, and a README.md that says how it is loaded.

        Args:
            repository: "user/name"; made where there is none.
            message: of the commit.
            private: whether a new one is; None: as the account has it.
            token: None: that of `hf auth login`.

        Returns:
            The address of the commit.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            kind = type(self).__name__
            card = MODEL_CARD.format(tag=self.hub_tag, kind=kind, load=self.loader, repository=repository)
            Path(folder, "README.md").write_text(card, encoding="utf-8")
            return upload(Path(folder), repository, message=message, private=private, token=token)

    def _typed_config(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.config()}
