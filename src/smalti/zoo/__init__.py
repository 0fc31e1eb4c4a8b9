"""Names → complete configurations → built models. The only registry of models.

build("simple", vocab_size=1024)     a fresh model
load("runs/photos")                  a trained one, from a folder or the Hugging Face hub
load_published("vq_ds16_c2i.pt")     somebody else's, from its publisher's checkpoint
"""

from smalti.zoo.models import DEFAULT, MODELS, TOKENIZERS, build, load
from smalti.zoo.priors import PRIORS, build_prior, load_prior
from smalti.zoo.published import FAMILIES, is_published, load_published, read_published
from smalti.zoo.published_priors import PRIOR_FAMILIES, load_published_prior

__all__ = [
    "DEFAULT",
    "FAMILIES",
    "MODELS",
    "PRIORS",
    "PRIOR_FAMILIES",
    "TOKENIZERS",
    "build",
    "build_prior",
    "is_published",
    "load",
    "load_prior",
    "load_published",
    "load_published_prior",
    "read_published",
]
