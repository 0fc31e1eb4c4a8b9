"""Image tokenizers: encoder + quantizer + decoder. Image to tokens and back; no loss weights, no optimizer."""

from smalti.tokenizers.base import Tokenizer, TokenizerOutput, pad_to_multiple
from smalti.tokenizers.dvae import DVAE
from smalti.tokenizers.emu3 import Emu3VQ
from smalti.tokenizers.patch import PatchVQVAE
from smalti.tokenizers.simple import SimpleVQVAE
from smalti.tokenizers.titok import TiTok
from smalti.tokenizers.token_images import to_token_image, to_tokens
from smalti.tokenizers.tokens import Tokens
from smalti.tokenizers.var_interface import IdxBl, VARTokenizer
from smalti.tokenizers.vocabulary import ImageVocabulary, resize_embeddings
from smalti.tokenizers.vqgan import VQGAN

__all__ = [
    "DVAE",
    "VQGAN",
    "Emu3VQ",
    "IdxBl",
    "ImageVocabulary",
    "PatchVQVAE",
    "SimpleVQVAE",
    "TiTok",
    "Tokenizer",
    "TokenizerOutput",
    "Tokens",
    "VARTokenizer",
    "pad_to_multiple",
    "resize_embeddings",
    "to_token_image",
    "to_tokens",
]
