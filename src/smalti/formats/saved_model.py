"""The folder of a saved model: config.json (class name and constructor arguments) and model.safetensors (weights).

Reading and writing go through the mixin of `huggingface_hub`, so that a model can be pushed to and pulled from the hub
and loads from a plain folder offline. What kind of model it is, tokenizer or prior, this file does not know.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from smalti.formats.arguments import construct
from smalti.formats.atomic import replace_file
from smalti.formats.foreign import foreign


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


class SavedModel(nn.Module, PyTorchModelHubMixin, ABC):
    """A model with `save_pretrained`, `from_pretrained`, `push_to_hub` and a fingerprint."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments in plain JSON types."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits that change when the configuration or any weight changes (SHA-256)."""
        digest = hashlib.sha256(json.dumps(self._saved_config(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _saved_config(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.config()}

    def _save_pretrained(self, save_directory: Path) -> None:
        """Called by `save_pretrained`: config.json (constructor arguments and class name) + model.safetensors."""
        try:
            with replace_file(save_directory / "model.safetensors", force=True) as temporary:
                save_model(self, str(temporary))
        except SafetensorError as error:  # its word for a full disk
            raise OSError(f"{save_directory}: weights cannot be written ({error})") from error
        text = json.dumps(self._saved_config(), indent=2, sort_keys=True)
        with replace_file(save_directory / "config.json", force=True) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **options: Any
    ) -> "SavedModel":
        """Called by `from_pretrained` with the constructor arguments of config.json.

        Unlike the mixin's own version it prints nothing, and a missing or surplus weight is an error.
        """
        hub = {
            name: options.pop(name) for name in ("revision", "cache_dir", "force_download", "local_files_only", "token")
        }
        folder = Path(model_id)
        path = folder / "model.safetensors"
        if not folder.is_dir():
            path = Path(hf_hub_download(model_id, path.name, **hub))
        try:
            model = construct(cls, options)
        except ValueError as error:
            raise ValueError(f"{folder}/config.json does not describe a {cls.__name__}: {error}") from error
        try:
            load_model(model, path, strict=strict)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a readable safetensors file ({foreign(path) or error})") from error
        except RuntimeError as error:
            raise ValueError(f"{path}: weights do not fit config.json: {' '.join(str(error).split())}") from error
        return model.to(map_location).eval()
