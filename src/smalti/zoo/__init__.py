"""Names → complete configurations → built models. The only registry of models.

build("simple", vocab_size=1024)     a fresh model
load("photo-f8")                     a trained one from the box, no network
load("runs/photos")                  a trained one, from a folder or the Hugging Face hub
load_published("vq_ds16_c2i.pt")     somebody else's, from its publisher's checkpoint
open_tokenizer(name)                 whichever of the last three it is
"""

from smalti.zoo.box import BOXED, DEFAULT, filled, is_boxed, saved_folder
from smalti.zoo.models import MODELS, TOKENIZERS, build, load
from smalti.zoo.open import is_tokenizer, open_tokenizer
from smalti.zoo.priors import PRIORS, build_prior, load_prior
from smalti.zoo.published.priors import PRIOR_FAMILIES, load_published_prior
from smalti.zoo.published.tokenizers import FAMILIES, is_published, load_published, read_published
from smalti.zoo.training_defaults import TRAINING

__all__ = [
    "BOXED",
    "DEFAULT",
    "FAMILIES",
    "MODELS",
    "PRIORS",
    "PRIOR_FAMILIES",
    "TOKENIZERS",
    "TRAINING",
    "build",
    "build_prior",
    "filled",
    "is_boxed",
    "is_published",
    "is_tokenizer",
    "load",
    "load_prior",
    "load_published",
    "load_published_prior",
    "open_tokenizer",
    "read_published",
    "saved_folder",
]
