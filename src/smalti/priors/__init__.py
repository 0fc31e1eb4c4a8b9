"""Priors: models of token sequences, from which images are sampled. Codes in, codes out; they never see an image.

`NextScaleTransformer` (VAR), `NextTokenTransformer` (LlamaGen) and `MaskedTransformer` (MaskGIT) share one interface,
`Prior`; `TokenLayout` is all that they know of a tokenizer.
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
