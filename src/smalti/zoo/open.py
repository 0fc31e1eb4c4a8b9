"""Opens trained models from all sources: the box, directories, published checkpoints, the hub."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from smalti.formats.arguments import checked
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
"""Kind of a model: boxed, a directory of `save_pretrained`, or a published file or directory."""


def kind_of(model: str | Path) -> Kind | None:
    """Kind of the model with this name, without loading it; None: no local model, so possibly a name on the hub.

    Raises:
        ValueError: an invalid config.json.
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
    except ValueError:  # several files of weights: the loader lists them
        return "published"
    return "published"


@checked
def open_tokenizer(model: str | Path) -> Tokenizer:
    """A trained tokenizer in eval mode.

    Args:
        model: the name of a boxed tokenizer ("photo-f8"); a run directory, a checkpoint or another directory with a
            saved model; a published checkpoint as for `load_published`; or a name on the hub ("user/name").

    Raises:
        FileNotFoundError: no such model.
        ValueError: a file or directory without a tokenizer.
    """
    return load_published(model) if kind_of(model) == "published" else load_saved(model)


@checked
def open_prior(prior: str | Path, tokenizer: Tokenizer | None = None, **options: Any) -> Prior:
    """A trained prior in eval mode.

    Args:
        prior: a run directory of `smalti train-prior`, a published checkpoint, or a name on the hub ("user/name").
        tokenizer: the tokenizer of its tokens; required for a published prior.
        options: for a published prior, settings that its file does not contain, see `load_published_prior`.

    Raises:
        FileNotFoundError: no such prior.
        ValueError: not a prior, or a prior for another tokenizer.
    """
    if kind_of(prior) == "published":
        if tokenizer is None:
            raise ValueError(f"tokenizer: got none, expected the tokenizer of the published prior {prior}")
        return load_published_prior(prior, tokenizer, **options)
    if options:
        raise ValueError(f"{', '.join(options)}: got options for {prior}, expected none with a saved prior")
    saved = load_saved_prior(prior)
    if tokenizer is not None:
        own = replace(saved.layout, vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
        saved.layout.require(own, "tokenizer")
    return saved
