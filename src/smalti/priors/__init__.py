"""Priors: models of token sequences, used to generate images. Input and output are tokens, never images.

`NextScaleTransformer` (VAR), `NextTokenTransformer` (LlamaGen) and `MaskedTransformer` (MaskGIT) share one interface,
`Prior`. They know a tokenizer only through its `TokenLayout`.
"""

from smalti.priors.base import Prior
from smalti.priors.layout import TokenLayout
from smalti.priors.masked import MaskedConfig, MaskedTransformer
from smalti.priors.next_scale import NextScaleConfig, NextScaleTransformer
from smalti.priors.next_token import NextTokenConfig, NextTokenTransformer
from smalti.priors.sampling import SamplingConfig

__all__ = [
    "MaskedConfig",
    "MaskedTransformer",
    "NextScaleConfig",
    "NextScaleTransformer",
    "NextTokenConfig",
    "NextTokenTransformer",
    "Prior",
    "SamplingConfig",
    "TokenLayout",
]
