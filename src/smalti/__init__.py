"""smalti: discrete image tokenizers. Images become tiles from a finite box, and the tiles become the image again.

Everything listed in `__all__` is imported when first used, so `import smalti` costs next to nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "BinarySphericalQuantizer": "smalti.quantizers",
    "DeadCodeRevival": "smalti.quantizers",
    "EMAVectorQuantizer": "smalti.quantizers",
    "FiniteScalarQuantizer": "smalti.quantizers",
    "GroupedQuantizer": "smalti.quantizers",
    "GumbelQuantizer": "smalti.quantizers",
    "IndexBackpropagationQuantizer": "smalti.quantizers",
    "ImageVocabulary": "smalti.tokenizers",
    "KMeansInit": "smalti.quantizers",
    "LookupFreeQuantizer": "smalti.quantizers",
    "MultiScaleQuantizer": "smalti.quantizers",
    "PatchVQVAE": "smalti.tokenizers",
    "ProjectedQuantizer": "smalti.quantizers",
    "Quantizer": "smalti.quantizers",
    "QuantizerOutput": "smalti.quantizers",
    "ResidualQuantizer": "smalti.quantizers",
    "SimVQ": "smalti.quantizers",
    "SimpleVQVAE": "smalti.tokenizers",
    "SmaltiImageProcessor": "smalti.zoo",
    "Tokenizer": "smalti.tokenizers",
    "Tokens": "smalti.tokenizers",
    "VectorQuantizer": "smalti.quantizers",
    "VQGAN": "smalti.tokenizers",
    "TiTok": "smalti.tokenizers",
    "build": "smalti.zoo",
    "decode_file": "smalti.verbs",
    "encode_file": "smalti.verbs",
    "evaluate": "smalti.verbs",
    "export": "smalti.verbs",
    "load": "smalti.zoo",
    "load_prior": "smalti.zoo",
    "load_published": "smalti.zoo",
    "load_published_prior": "smalti.zoo",
    "sample": "smalti.verbs",
    "tokenize": "smalti.verbs",
    "train": "smalti.verbs",
    "vocabulary": "smalti.tokenizers",  # the module: ImageVocabulary, resize_embeddings
    "MaskedTransformer": "smalti.priors",
    "NextScaleTransformer": "smalti.priors",
    "NextTokenTransformer": "smalti.priors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):  # of type Any, whose import would be one too many for `python -m`, see cli/__main__.py
    if name not in _HOMES:
        raise AttributeError(f"module 'smalti' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
