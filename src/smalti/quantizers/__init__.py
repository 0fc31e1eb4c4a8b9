"""One quantizer a file, behind one abstract class (`Quantizer`) and one result type (`QuantizerOutput`)."""

from smalti.quantizers.base import Indices, Quantizer, QuantizerOutput
from smalti.quantizers.codebook import CodebookQuantizer
from smalti.quantizers.ema import EMAVectorQuantizer
from smalti.quantizers.multi_scale import MultiScaleQuantizer
from smalti.quantizers.rebuild import quantizer_from_config
from smalti.quantizers.strategies import DeadCodeRevival, KMeansInit
from smalti.quantizers.vector import VectorQuantizer

__all__ = [
    "CodebookQuantizer",
    "DeadCodeRevival",
    "EMAVectorQuantizer",
    "Indices",
    "KMeansInit",
    "MultiScaleQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "VectorQuantizer",
    "quantizer_from_config",
]
