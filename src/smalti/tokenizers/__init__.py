"""Image tokenizers: encoder + quantizer + decoder. Image to tokens and back; no loss weights, no optimizer."""

from smalti.tokenizers.base import IdxBl, Tokenizer, TokenizerOutput, pad_to_multiple
from smalti.tokenizers.simple import SimpleVQVAE
from smalti.tokenizers.tokens import Tokens

__all__ = ["IdxBl", "SimpleVQVAE", "Tokenizer", "TokenizerOutput", "Tokens", "pad_to_multiple"]
