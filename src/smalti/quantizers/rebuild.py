"""From the plain dictionary in a saved model's config.json back to the quantizer it describes."""

import inspect
from collections.abc import Mapping
from typing import Any

from smalti.quantizers.base import Quantizer
from smalti.quantizers.ema import EMAVectorQuantizer
from smalti.quantizers.multi_scale import MultiScaleQuantizer
from smalti.quantizers.strategies import DeadCodeRevival, KMeansInit
from smalti.quantizers.vector import VectorQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "VectorQuantizer": VectorQuantizer,
    "EMAVectorQuantizer": EMAVectorQuantizer,
    "MultiScaleQuantizer": MultiScaleQuantizer,
}


def quantizer_from_config(config: Mapping[str, Any]) -> Quantizer:
    """Build the quantizer that `Quantizer.config()` described.

    Args:
        config: "type" (a name in `QUANTIZERS`) and constructor arguments; omitted ones keep their defaults.

    Raises:
        ValueError: an unknown type, or an argument that it does not take.
    """
    arguments = dict(config)
    name = arguments.pop("type", None)
    if name not in QUANTIZERS:
        raise ValueError(f"quantizer type: got {name!r}, expected one of {sorted(QUANTIZERS)}")
    cls = QUANTIZERS[name]
    bases = [base for base in cls.__mro__ if issubclass(base, Quantizer) and "__init__" in vars(base)]
    allowed = {key for base in bases for key in inspect.signature(base).parameters}
    for key, value in arguments.items():
        if key not in allowed:
            raise ValueError(f"quantizer {name}: unknown argument {key!r}")
        if isinstance(value, Mapping):
            arguments[key] = _PARTS[key](value)
    return cls(**arguments)


_PARTS = {
    "quantizer": quantizer_from_config,
    "init": lambda config: KMeansInit(**config),
    "revival": lambda config: DeadCodeRevival(**config),
}
