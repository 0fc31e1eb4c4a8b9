"""Quantizers: one idea per file, behind one abstract class (`Quantizer`) and one result type (`QuantizerOutput`).

Start reading at `vector.py`, then `base.py`. A new quantizer is one file here and its name below, in `__all__` and in
`QUANTIZERS`.

Codes in a table: `VectorQuantizer`, `EMAVectorQuantizer`, `SimVQ`, `IndexBackpropagationQuantizer`, `GumbelQuantizer`.
With computed codes: `FiniteScalarQuantizer`, `LookupFreeQuantizer`, `BinarySphericalQuantizer`.
Wrappers: `ProjectedQuantizer`, `ResidualQuantizer`, `GroupedQuantizer`, `MultiScaleQuantizer`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from smalti.formats.arguments import construct
from smalti.quantizers.base import Indices, PointwiseQuantizer, Quantizer, QuantizerOutput
from smalti.quantizers.binary import BinaryQuantizer, BinarySphericalQuantizer, LookupFreeQuantizer
from smalti.quantizers.composite import GroupedQuantizer, ResidualQuantizer
from smalti.quantizers.ema import EMAVectorQuantizer
from smalti.quantizers.finite_scalar import FiniteScalarQuantizer
from smalti.quantizers.gumbel import GumbelQuantizer, OneHotQuantizer
from smalti.quantizers.index_backpropagation import IndexBackpropagationQuantizer
from smalti.quantizers.multi_scale import MultiScaleQuantizer
from smalti.quantizers.projected import ProjectedQuantizer
from smalti.quantizers.sim_vq import SimVQ
from smalti.quantizers.strategies import DeadCodeRevival, KMeansInit
from smalti.quantizers.vector import CodebookQuantizer, VectorQuantizer, ZNormVectorQuantizer, one_codebook_update

__all__ = [
    "QUANTIZERS",
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
    "OneHotQuantizer",
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

QUANTIZERS: dict[str, type[Quantizer]] = {
    "VectorQuantizer": VectorQuantizer,
    "ZNormVectorQuantizer": ZNormVectorQuantizer,
    "EMAVectorQuantizer": EMAVectorQuantizer,
    "SimVQ": SimVQ,
    "IndexBackpropagationQuantizer": IndexBackpropagationQuantizer,
    "GumbelQuantizer": GumbelQuantizer,
    "OneHotQuantizer": OneHotQuantizer,
    "FiniteScalarQuantizer": FiniteScalarQuantizer,
    "LookupFreeQuantizer": LookupFreeQuantizer,
    "BinarySphericalQuantizer": BinarySphericalQuantizer,
    "ProjectedQuantizer": ProjectedQuantizer,
    "ResidualQuantizer": ResidualQuantizer,
    "GroupedQuantizer": GroupedQuantizer,
    "MultiScaleQuantizer": MultiScaleQuantizer,
}
"""Every quantizer that a saved model may name, by that name."""


def quantizer_from_config(config: Mapping[str, Any]) -> Quantizer:
    """Build a quantizer from a dictionary as `Quantizer.config()` returns it.

    Args:
        config: "type" (a name in `QUANTIZERS`) and constructor arguments; omitted arguments have the value of older
            models (`Quantizer.older_defaults`) or else their default.

    Raises:
        ValueError: an unknown type, or an unknown argument of the type.
    """
    if not isinstance(config, Mapping) or config.get("type") not in list(QUANTIZERS):
        raise ValueError(f"quantizer: got {config!r}, expected a mapping with type one of {', '.join(QUANTIZERS)}")
    arguments = {name: _part(name, value) for name, value in config.items() if name != "type"}
    kind = QUANTIZERS[config["type"]]
    return construct(kind, {**kind.older_defaults, **arguments})


def with_quantizer(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a model; a quantizer given as a dictionary (`Quantizer.config`) is built."""
    quantizer = config.get("quantizer")
    if quantizer is None or isinstance(quantizer, Quantizer):
        return config
    return {**config, "quantizer": quantizer_from_config(quantizer)}


def _part(name: str, value: Any) -> Any:
    """An argument; if it is an object, built from its dictionary."""
    if value is None:
        return None
    if name == "quantizer":
        return quantizer_from_config(value)
    if name == "quantizers" and isinstance(value, Sequence):
        return [quantizer_from_config(part) for part in value]
    if name == "init":
        return construct(KMeansInit, value)
    if name == "revival":
        return construct(DeadCodeRevival, value)
    return value
