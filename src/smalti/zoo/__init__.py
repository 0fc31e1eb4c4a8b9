"""Names → complete configurations → built models. The only registry of models.

build("simple", vocab_size=1024)     a fresh tokenizer
open_tokenizer("photo-f8")           a trained one: boxed, from a folder, a published checkpoint or the hub
build_prior(...), open_prior(...)    the same for priors

The public names of `open_tokenizer` and `open_prior` are `smalti.load` and `smalti.load_prior`.
"""

from smalti.zoo.box import BOXED, DEFAULT, filled, is_boxed, saved_folder
from smalti.zoo.image_processor import SmaltiImageProcessor
from smalti.zoo.models import MODELS, TOKENIZERS, build
from smalti.zoo.open import kind_of, open_prior, open_tokenizer
from smalti.zoo.priors import PRIORS, build_prior
from smalti.zoo.published.priors import PRIOR_FAMILIES, PriorOptions, load_published_prior
from smalti.zoo.published.tokenizers import FAMILIES, load_published, read_published
from smalti.zoo.training_defaults import TRAINING

load, load_prior = open_tokenizer, open_prior

__all__ = [
    "BOXED",
    "DEFAULT",
    "FAMILIES",
    "MODELS",
    "PRIORS",
    "PRIOR_FAMILIES",
    "TOKENIZERS",
    "TRAINING",
    "PriorOptions",
    "SmaltiImageProcessor",
    "build",
    "build_prior",
    "filled",
    "is_boxed",
    "kind_of",
    "load",
    "load_prior",
    "load_published",
    "load_published_prior",
    "open_prior",
    "open_tokenizer",
    "read_published",
    "saved_folder",
]
