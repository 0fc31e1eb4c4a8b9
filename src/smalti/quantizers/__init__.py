"""One quantizer a file, behind one abstract class (`Quantizer`) and one result type (`QuantizerOutput`)."""

from smalti.quantizers.base import Indices, Quantizer, QuantizerOutput
from smalti.quantizers.codebook import CodebookQuantizer
from smalti.quantizers.ema import EMAVectorQuantizer
from smalti.quantizers.gumbel import GumbelQuantizer
from smalti.quantizers.ibq import IndexBackpropagationQuantizer
from smalti.quantizers.lookup_free import LookupFreeQuantizer
from smalti.quantizers.multi_scale import MultiScaleQuantizer
from smalti.quantizers.rebuild import quantizer_from_config
from smalti.quantizers.strategies import DeadCodeRevival, KMeansInit
from smalti.quantizers.vector import VectorQuantizer
from smalti.quantizers.znorm import ZNormVectorQuantizer

__all__ = [
    "CodebookQuantizer",
    "DeadCodeRevival",
    "EMAVectorQuantizer",
    "GumbelQuantizer",
    "IndexBackpropagationQuantizer",
    "Indices",
    "KMeansInit",
    "LookupFreeQuantizer",
    "MultiScaleQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "VectorQuantizer",
    "ZNormVectorQuantizer",
    "quantizer_from_config",
]
