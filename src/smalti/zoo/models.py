"""The registry: all models that this package can build by name, and loading of saved ones."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.checks import one_of
from smalti.formats.arguments import check_arguments
from smalti.formats.hub import fetch, may_be_on_hub
from smalti.models import read_config
from smalti.tokenizers import DVAE, VQGAN, Emu3VQ, PatchVQVAE, SimpleVQVAE, TiTok, Tokenizer
from smalti.zoo.box import BOXED, filled, is_boxed, saved_folder
from smalti.zoo.memory import check_memory

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "DVAE": DVAE,
    "Emu3VQ": Emu3VQ,
    "PatchVQVAE": PatchVQVAE,
    "SimpleVQVAE": SimpleVQVAE,
    "TiTok": TiTok,
    "VQGAN": VQGAN,
}
"""Classes by their names in config.json."""

ALIVE: dict[str, Any] = {"init": {}, "revival": {}}
"""Initialization of the codebook from data and revival of dead codes, both with default settings."""

LEARNED = {"type": "VectorQuantizer", **ALIVE}
"""A codebook learned by gradient descent."""

AVERAGED = {"type": "EMAVectorQuantizer", **ALIVE}
"""A codebook of moving averages (EMA)."""

PHOTO_CODEBOOK = {**AVERAGED, "init": {"batches": 12}, "decay": 0.9875}
"""The codebook of the tokenizers for photographs: a moving average over 80 batches of about 1000 vectors."""

PIXEL_DECODER = {
    "widths": [128, 128, 256, 256, 512],
    "attention_levels": [],
    "mid": ["residual", "residual"],
    "projection": 0,
    "style": {"bias": False},
}
"""The decoder of MaskGIT-VQGAN, the pixel decoder of two-stage TiTok models."""

VIT_S = {"width": 512, "layers": 8, "num_heads": 8}
VIT_B = {"width": 768, "layers": 12, "num_heads": 12}
VIT_L = {"width": 1024, "layers": 24, "num_heads": 16}
"""TiTok's three sizes of vision transformers."""

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
    "patch-multi-scale": {
        "type": "PatchVQVAE",
        "vocab_size": 512,
        "embedding_dim": 32,
        "encoder": {"widths": [64, 128], "blocks": [1, 2]},
        "decoder": {"widths": [64, 128], "blocks": [1, 3]},
        "patch_nums": [1, 2, 3, 4, 6, 8],
    },
    "photo-f8": {
        "type": "PatchVQVAE",
        "encoder": {"widths": [64, 192], "blocks": [1, 3]},
        "decoder": {"widths": [64, 224], "blocks": [2, 7]},
        "vocab_size": 8192,
        "embedding_dim": 16,
        "quantizer": {**PHOTO_CODEBOOK, "num_embeddings": 8192, "embedding_dim": 16},
    },
    "photo-pyramid": {
        "type": "PatchVQVAE",
        "encoder": {"widths": [64, 192, 256], "blocks": [1, 2, 2]},
        "decoder": {"widths": [64, 192, 256], "blocks": [2, 3, 4]},
        "vocab_size": 4096,
        "embedding_dim": 32,
        "quantizer": {
            "type": "MultiScaleQuantizer",
            "num_embeddings": 4096,
            "embedding_dim": 32,
            "patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
            "quantizer": {**PHOTO_CODEBOOK, "num_embeddings": 4096, "embedding_dim": 32},
        },
    },
    "vqgan-f8": {
        "type": "VQGAN",
        "encoder": {"widths": [128, 256, 256, 512], "latent_channels": 4},
        "quantizer": {**AVERAGED, "num_embeddings": 16384, "embedding_dim": 4},
    },
    "vqgan-f16": {
        "type": "VQGAN",
        "encoder": {"widths": [128, 128, 256, 256, 512], "latent_channels": 256},
        "quantizer": {**AVERAGED, "num_embeddings": 1024, "embedding_dim": 256},
    },
    "var-f16": {
        "type": "VQGAN",
        "encoder": {"widths": [160, 160, 320, 320, 640], "latent_channels": 32, "projection": 3},
        "quantizer": {
            "type": "MultiScaleQuantizer",
            "num_embeddings": 4096,
            "embedding_dim": 32,
            "patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
            "quantizer": {**LEARNED, "num_embeddings": 4096, "embedding_dim": 32},
        },
    },
    "llamagen-f16": {
        "type": "VQGAN",
        "encoder": {"widths": [128, 128, 256, 256, 512], "latent_channels": 256},
        "quantizer": {**LEARNED, "num_embeddings": 16384, "embedding_dim": 8, "metric": "cosine"},
    },
    "titok-s128": {
        "type": "TiTok",
        "encoder": VIT_S,
        "num_latent_tokens": 128,
        "pixel_decoder": PIXEL_DECODER,
        "quantizer": {**LEARNED, "num_embeddings": 4096, "embedding_dim": 12, "metric": "cosine"},
    },
    "titok-b64": {
        "type": "TiTok",
        "encoder": VIT_B,
        "num_latent_tokens": 64,
        "pixel_decoder": PIXEL_DECODER,
        "quantizer": {**LEARNED, "num_embeddings": 4096, "embedding_dim": 12, "metric": "cosine"},
    },
    "titok-l32": {
        "type": "TiTok",
        "encoder": VIT_L,
        "num_latent_tokens": 32,
        "pixel_decoder": PIXEL_DECODER,
        "quantizer": {**LEARNED, "num_embeddings": 4096, "embedding_dim": 12, "metric": "cosine"},
    },
    "titok-bl64": {
        "type": "TiTok",
        "encoder": VIT_B,
        "decoder": VIT_L,
        "num_latent_tokens": 64,
        "quantizer": {**LEARNED, "num_embeddings": 8192, "embedding_dim": 64},
    },
    "titok-bl128": {
        "type": "TiTok",
        "encoder": VIT_B,
        "decoder": VIT_L,
        "num_latent_tokens": 128,
        "quantizer": {**LEARNED, "num_embeddings": 8192, "embedding_dim": 64},
    },
    "titok-sl256": {
        "type": "TiTok",
        "encoder": VIT_S,
        "decoder": VIT_L,
        "num_latent_tokens": 256,
        "quantizer": {**LEARNED, "num_embeddings": 8192, "embedding_dim": 64},
    },
}
"""Complete configurations by name: the class under "type", then its constructor arguments."""


def build(name: str, **changes: Any) -> Tokenizer:
    """A model with initial weights: the configuration `name` of `MODELS` with some constructor arguments changed.

    Args:
        name: a key of `MODELS`.
        changes: constructor arguments; a quantizer may be a dictionary like that of `Quantizer.config`. A dictionary
            without "type" changes only the values of its keys and keeps the others.

    Raises:
        ValueError: an unknown name or argument (the message lists the known ones), a value of a wrong type, or a model
            that does not fit into memory.
    """
    one_of(tuple(MODELS), model=name)
    row = dict(MODELS[name])
    cls = TOKENIZERS[row.pop("type")]
    arguments = {key: _merged(value, changes.get(key, value)) for key, value in row.items()}
    arguments |= {key: value for key, value in _known(cls, changes).items() if key not in row}
    check_arguments(cls, arguments)
    check_memory(lambda: cls.from_config(arguments))
    return cls.from_config(arguments)


def _merged(value: Any, change: Any) -> Any:
    """The change; if both are dictionaries, the value updated with the change."""
    if isinstance(value, Mapping) and isinstance(change, Mapping) and "type" not in change:
        return {**value, **{key: _merged(value.get(key), part) for key, part in change.items()}}
    return change


def _known(cls: type[Tokenizer], arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments; refuses unknown ones."""
    allowed = inspect.signature(cls).parameters
    for key in arguments:
        if key not in allowed:
            raise ValueError(f"model argument: got {key!r}, expected one of {', '.join(allowed)} for {cls.__name__}")
    return arguments


def load_saved(model: str | Path) -> Tokenizer:
    """A saved model in eval mode; `open_tokenizer` also opens published ones.

    Args:
        model: the name of a boxed tokenizer ("photo-f8"), a directory with config.json and model.safetensors, or a name
            on the hub ("user/name"). For a directory with the name of a boxed tokenizer write "./photo-f8".

    Raises:
        FileNotFoundError: no such directory, no model in it, or an installation without boxed weights.
        ValueError: an unknown model class.
    """
    folder = saved_folder(model)
    if is_boxed(model) and not filled(str(model)):
        raise FileNotFoundError(f"{model}: this installation has no weights of it (expected in {folder})")
    if folder.is_dir():
        config_path = folder / "config.json"
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder}: holds no {name}")
    elif not may_be_on_hub(model):
        built_in = ", ".join(BOXED)
        raise FileNotFoundError(
            f"{model}: is not a folder with a saved model, a published checkpoint or a built-in name ({built_in})"
        )
    else:
        config_path = fetch(str(model), "config.json")
    config = read_config(config_path)
    kind = config.get("type")
    if kind not in TOKENIZERS:
        raise ValueError(f"{config_path}: has type {kind!r}, expected one of {', '.join(TOKENIZERS)}")
    _known(TOKENIZERS[kind], {key: value for key, value in config.items() if key != "type"})
    return TOKENIZERS[kind].from_pretrained(folder if folder.is_dir() else model).eval()
