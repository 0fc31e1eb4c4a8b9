"""The box: tokenizers whose weights come with the package, for `load("photo-f8")` without training or network.

Each has a folder in `boxed/`: config.json, model.safetensors and train.yaml, which says how it was trained. Its numbers
are stored in half precision (fp16) and loaded as fp32, so a boxed tokenizer has one fingerprint on every machine.
`recipes/make_box.py` makes these folders from runs.
"""

from pathlib import Path

BOX = Path(__file__).parent / "boxed"
"""Where the folders are."""

BOXED = ("photo-f8", "photo-pyramid")
"""Names of the box. Each is a row of `MODELS`, too: `build` makes it fresh, `load` gives it trained."""

DEFAULT = "photo-f8"
"""The tokenizer that commands take, and the model that `smalti train` trains, where none is named."""


def is_boxed(model: str | Path) -> bool:
    """Whether this is a name of the box. A folder of the same name is `./photo-f8`, or a `Path`."""
    return isinstance(model, str) and model in BOXED


def saved_folder(model: str | Path) -> Path:
    """The folder of a saved model: that of the box for its names, else the path itself, which may not exist."""
    return BOX / model if is_boxed(model) else Path(model)


def filled(model: str) -> bool:
    """Whether this installation has the weights of a name of the box."""
    return (BOX / model / "model.safetensors").is_file()
