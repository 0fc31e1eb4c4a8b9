"""The box: built-in tokenizers with weights, for `load("photo-f8")` without training or network.

Each has a directory in `boxed/`: config.json, model.safetensors and train.yaml, the recipe of its training. Weights
are stored in half precision (fp16) and loaded as fp32, so the fingerprint is equal on every machine.
`recipes/make_box.py` makes these directories from runs.
"""

from pathlib import Path

BOX = Path(__file__).parent / "boxed"
"""The directory of the boxed tokenizers."""

BOXED = ("photo-f8", "photo-pyramid")
"""Names of the boxed tokenizers. Each is also a key of `MODELS`: `build` makes it untrained, `load` trained."""

DEFAULT = "photo-f8"
"""Default tokenizer of all commands, and default model of `smalti train`."""


def is_boxed(model: str | Path) -> bool:
    """Whether this is the name of a boxed tokenizer. For a directory of that name use `./photo-f8` or a `Path`."""
    return isinstance(model, str) and model in BOXED


def saved_folder(model: str | Path) -> Path:
    """The directory of a saved model: the directory in the box for a boxed name, else the path itself, unchecked."""
    return BOX / model if is_boxed(model) else Path(model)


def filled(model: str) -> bool:
    """Whether this installation has the weights of a boxed tokenizer."""
    return (BOX / model / "model.safetensors").is_file()
