"""The one door to trained models, whoever made them and wherever they lie."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from smalti.models import read_config
from smalti.priors import Prior
from smalti.tokenizers import Tokenizer
from smalti.zoo.box import is_boxed
from smalti.zoo.models import load_saved
from smalti.zoo.priors import load_saved_prior
from smalti.zoo.published.checkpoints import INDEX, SUFFIXES, locate
from smalti.zoo.published.priors import load_published_prior
from smalti.zoo.published.tokenizers import load_published

Kind = Literal["boxed", "saved", "published"]
"""What a model is: one of the box, a folder that `save_pretrained` wrote, or a publisher's file or folder."""


def kind_of(model: str | Path) -> Kind | None:
    """What a name means on this machine; None: no model here, so perhaps a name on the hub. Nothing is loaded.

    Raises:
        ValueError: a config.json that is none.
    """
    path = Path(model)
    if is_boxed(model):
        return "boxed"
    if path.is_file():
        return "published" if path.name.lower().endswith((*SUFFIXES, INDEX)) else None
    if not path.is_dir():
        return None
    if (path / "config.json").is_file():
        return "saved" if "type" in read_config(path / "config.json") else "published"
    try:
        locate(path)
    except FileNotFoundError:
        return None
    except ValueError:  # several files of weights: the loader says which
        return "published"
    return "published"


def open_tokenizer(model: str | Path) -> Tokenizer:
    """A trained tokenizer in eval mode.

    Args:
        model: a name of the box ("photo-f8"); a run, one of its checkpoints or any other folder with a saved model; a
            published checkpoint, a file or folder as `load_published` takes it; or a name on the hub ("user/name").

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file or folder that holds no tokenizer.
    """
    return load_published(model) if kind_of(model) == "published" else load_saved(model)


def open_prior(prior: str | Path, tokenizer: Tokenizer | None = None, **options: Any) -> Prior:
    """A trained prior in eval mode.

    Args:
        prior: a folder that `smalti train-prior` made, a published checkpoint, or a name on the hub ("user/name").
        tokenizer: the one whose tokens it models; a published prior needs it.
        options: of a published prior, what its file does not tell, see `load_published_prior`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: something else than a prior, or one that was made for another tokenizer.
    """
    if kind_of(prior) == "published":
        if tokenizer is None:
            raise ValueError(f"tokenizer: got none, expected the one that the published prior {prior} was trained on")
        return load_published_prior(prior, tokenizer, **options)
    if options:
        raise ValueError(f"{', '.join(options)}: got options for {prior}, expected none with a saved prior")
    saved = load_saved_prior(prior)
    if tokenizer is not None:
        own = replace(saved.layout, vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
        saved.layout.require(own, "tokenizer")
    return saved
