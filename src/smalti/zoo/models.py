"""The registry: every model this package can build by name, and how a saved one is found again."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from smalti.quantizers import quantizer_from_config
from smalti.tokenizers import VQGAN, Emu3VQ, SimpleVQVAE, TiTok, Tokenizer

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "Emu3VQ": Emu3VQ,
    "SimpleVQVAE": SimpleVQVAE,
    "TiTok": TiTok,
    "VQGAN": VQGAN,
}
"""Class names as they stand in config.json."""

MODELS: dict[str, dict[str, Any]] = {
    "simple": {"type": "SimpleVQVAE", "vocab_size": 512, "embedding_dim": 64, "hidden_dim": 128},
    "simple-f8": {"type": "SimpleVQVAE", "vocab_size": 1024, "embedding_dim": 64, "hidden_dim": 192, "num_stages": 3},
    "multi-scale": {
        "type": "SimpleVQVAE",
        "vocab_size": 512,
        "embedding_dim": 32,
        "hidden_dim": 128,
        "num_stages": 3,
        "patch_nums": [1, 2, 3, 4, 6, 8],
    },
}
"""Complete configurations by name: the class under "type", then its constructor arguments."""


def build(name: str, **changes: Any) -> Tokenizer:
    """A freshly initialised model: the row `name` of `MODELS` with some constructor arguments changed.

    Args:
        name: a key of `MODELS`.
        changes: constructor arguments; a quantizer may be given as the dictionary that `Quantizer.config` returns.

    Raises:
        ValueError: an unknown name or argument; the message lists what there is.
    """
    if name not in MODELS:
        raise ValueError(f"model: got {name!r}, expected one of {', '.join(MODELS)}")
    row = dict(MODELS[name])
    cls = TOKENIZERS[row.pop("type")]
    arguments = {**row, **_known(cls, changes)}
    if isinstance(arguments.get("quantizer"), Mapping):
        arguments["quantizer"] = quantizer_from_config(arguments["quantizer"])
    return cls(**arguments)


def _known(cls: type[Tokenizer], arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments, if the constructor takes them all."""
    allowed = inspect.signature(cls).parameters
    for key in arguments:
        if key not in allowed:
            raise ValueError(f"model argument: got {key!r}, {cls.__name__} takes {', '.join(allowed)}")
    return arguments


def load(model: str | Path) -> Tokenizer:
    """A saved model in eval mode, from a folder with config.json and model.safetensors or from the hub ("user/name").

    Raises:
        FileNotFoundError: no such folder, or no model in it.
        ValueError: a model class that this package does not have.
    """
    folder = Path(model)
    if folder.is_dir():
        config_path = folder / "config.json"
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"model: {folder} holds no {name}")
    elif folder.exists() or str(model).count("/") != 1 or str(model).startswith((".", "/")):
        raise FileNotFoundError(f"model: {model} is not a folder with a saved model")
    else:
        config_path = Path(hf_hub_download(str(model), "config.json"))
    config = json.loads(config_path.read_text(encoding="utf-8"))
    kind = config.get("type") if isinstance(config, dict) else None
    if kind not in TOKENIZERS:
        raise ValueError(f"model: {config_path} is of type {kind!r}, known are {', '.join(TOKENIZERS)}")
    _known(TOKENIZERS[kind], {key: value for key, value in config.items() if key != "type"})
    return TOKENIZERS[kind].from_pretrained(model).eval()
