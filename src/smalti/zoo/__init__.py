"""Names → complete configurations → built models. The only registry of models.

build("simple", vocab_size=1024)     a fresh model
load("runs/photos")                  a trained one, from a folder or the Hugging Face hub
"""

from smalti.zoo.models import MODELS, TOKENIZERS, build, load

__all__ = ["MODELS", "TOKENIZERS", "build", "load"]
