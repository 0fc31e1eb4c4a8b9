"""One quantizer a file, behind one abstract class (`Quantizer`) and one result type (`QuantizerOutput`).

Codes in a table: `VectorQuantizer`, `EMAVectorQuantizer`, `SimVQ`, `IndexBackpropagationQuantizer`, `GumbelQuantizer`.
Codes that are computed: `FiniteScalarQuantizer`, `LookupFreeQuantizer`, `BinarySphericalQuantizer`.
Around any of them: `ProjectedQuantizer`, `ResidualQuantizer`, `GroupedQuantizer`, `MultiScaleQuantizer`.
"""

from smalti.quantizers.base import Indices, Quantizer, QuantizerOutput
from smalti.quantizers.binary_spherical import BinarySphericalQuantizer
from smalti.quantizers.codebook import CodebookQuantizer, one_codebook_update
from smalti.quantizers.ema import EMAVectorQuantizer
from smalti.quantizers.finite_scalar import FiniteScalarQuantizer
from smalti.quantizers.grouped import GroupedQuantizer
from smalti.quantizers.gumbel import GumbelQuantizer
from smalti.quantizers.index_backpropagation import IndexBackpropagationQuantizer
from smalti.quantizers.lookup_free import LookupFreeQuantizer
from smalti.quantizers.multi_scale import MultiScaleQuantizer
from smalti.quantizers.projected import ProjectedQuantizer
from smalti.quantizers.rebuild import quantizer_from_config, with_quantizer
from smalti.quantizers.residual import ResidualQuantizer
from smalti.quantizers.rows import RowQuantizer
from smalti.quantizers.sim_vq import SimVQ
from smalti.quantizers.strategies import DeadCodeRevival, KMeansInit
from smalti.quantizers.vector import VectorQuantizer
from smalti.quantizers.znorm import ZNormVectorQuantizer

__all__ = [
    "BinarySphericalQuantizer",
    "CodebookQuantizer",
    "DeadCodeRevival",
    "EMAVectorQuantizer",
    "FiniteScalarQuantizer",
    "GroupedQuantizer",
    "GumbelQuantizer",
    "IndexBackpropagationQuantizer",
    "Indices",
    "KMeansInit",
    "LookupFreeQuantizer",
    "MultiScaleQuantizer",
    "ProjectedQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "RowQuantizer",
    "SimVQ",
    "VectorQuantizer",
    "ZNormVectorQuantizer",
    "one_codebook_update",
    "quantizer_from_config",
    "with_quantizer",
]
