"""Quantizers: one idea per file, behind one abstract class (`Quantizer`) and one result type (`QuantizerOutput`).

Start reading at `vector.py`, then `base.py`. A new quantizer is one file here, one line in
`rebuild.py` and its name below.

Codes in a table: `VectorQuantizer`, `EMAVectorQuantizer`, `SimVQ`, `IndexBackpropagationQuantizer`, `GumbelQuantizer`.
With computed codes: `FiniteScalarQuantizer`, `LookupFreeQuantizer`, `BinarySphericalQuantizer`.
Wrappers: `ProjectedQuantizer`, `ResidualQuantizer`, `GroupedQuantizer`, `MultiScaleQuantizer`.
"""

from smalti.quantizers.base import Indices, PointwiseQuantizer, Quantizer, QuantizerOutput
from smalti.quantizers.binary import BinaryQuantizer, BinarySphericalQuantizer, LookupFreeQuantizer
from smalti.quantizers.composite import GroupedQuantizer, ResidualQuantizer
from smalti.quantizers.ema import EMAVectorQuantizer
from smalti.quantizers.finite_scalar import FiniteScalarQuantizer
from smalti.quantizers.gumbel import GumbelQuantizer
from smalti.quantizers.index_backpropagation import IndexBackpropagationQuantizer
from smalti.quantizers.multi_scale import MultiScaleQuantizer
from smalti.quantizers.projected import ProjectedQuantizer
from smalti.quantizers.rebuild import quantizer_from_config, with_quantizer
from smalti.quantizers.sim_vq import SimVQ
from smalti.quantizers.strategies import DeadCodeRevival, KMeansInit
from smalti.quantizers.vector import CodebookQuantizer, VectorQuantizer, ZNormVectorQuantizer, one_codebook_update

__all__ = [
    "BinaryQuantizer",
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
    "PointwiseQuantizer",
    "ProjectedQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "SimVQ",
    "VectorQuantizer",
    "ZNormVectorQuantizer",
    "one_codebook_update",
    "quantizer_from_config",
    "with_quantizer",
]
