"""The one door to a trained tokenizer, whoever made it and wherever it lies."""

from pathlib import Path

from smalti.tokenizers import Tokenizer
from smalti.zoo.box import is_boxed
from smalti.zoo.models import load
from smalti.zoo.published.checkpoints import INDEX, SUFFIXES
from smalti.zoo.published.tokenizers import is_published, load_published


def open_tokenizer(name: str) -> Tokenizer:
    """A tokenizer in eval mode.

    Args:
        name: a name of the box ("photo-f8"); a run, one of its checkpoints or any other folder with a saved model; a
            published checkpoint, a file or folder as `load_published` takes it; or a name on the hub ("user/name").

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file or folder that holds no tokenizer.
    """
    return load_published(name) if is_published(name) else load(name)


def is_tokenizer(name: str) -> bool:
    """Whether `open_tokenizer` would find a tokenizer of this name on this machine; nothing is loaded."""
    path = Path(name)
    if is_boxed(name):
        return True
    if path.is_file():
        return path.name.lower().endswith((*SUFFIXES, INDEX))
    return path.is_dir() and ((path / "config.json").is_file() or is_published(name))
