"""Priors by name: published sizes, and small sizes for training on a laptop.

build_prior("next-scale-small", layout, 10, quantizer)     an untrained prior
open_prior("prior")                                        a trained prior, see `open.py`
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from smalti.checks import one_of
from smalti.formats.arguments import construct
from smalti.formats.hub import fetch, may_be_on_hub
from smalti.models import read_config
from smalti.priors import MaskedTransformer, NextScaleTransformer, NextTokenTransformer, Prior, TokenLayout
from smalti.priors.masked import MaskedConfig
from smalti.priors.next_scale import NextScaleConfig
from smalti.priors.next_token import NextTokenConfig
from smalti.quantizers import MultiScaleQuantizer, Quantizer, quantizer_from_config
from smalti.zoo.memory import check_memory

PRIOR_TYPES: dict[str, type[Prior]] = {
    "MaskedTransformer": MaskedTransformer,
    "NextScaleTransformer": NextScaleTransformer,
    "NextTokenTransformer": NextTokenTransformer,
}
"""Classes by their names in config.json."""

CONFIGS = {
    "MaskedTransformer": MaskedConfig,
    "NextScaleTransformer": NextScaleConfig,
    "NextTokenTransformer": NextTokenConfig,
}


def _var(depth: int, **more: Any) -> dict[str, Any]:
    """VAR's rules: 64 dimensions per head, as many heads as blocks, stochastic depth that rises with depth."""
    sizes = {"depth": depth, "width": 64 * depth, "num_heads": depth, "drop_path": depth / 240}
    return {"type": "NextScaleTransformer", **sizes, **more}


def _llamagen(depth: int, width: int, num_heads: int) -> dict[str, Any]:
    sizes = {"depth": depth, "width": width, "num_heads": num_heads, "dropout": 0.1}
    return {"type": "NextTokenTransformer", **sizes}


SMALL = {"depth": 6, "width": 256, "num_heads": 4}
"""Trains on a laptop."""

PRIORS: dict[str, dict[str, Any]] = {
    "next-scale-small": {"type": "NextScaleTransformer", **SMALL},
    "next-token-small": {"type": "NextTokenTransformer", **SMALL},
    "masked-small": {"type": "MaskedTransformer", **SMALL},
    "var-d16": _var(16),
    "var-d20": _var(20),
    "var-d24": _var(24),
    "var-d30": _var(30),
    "var-d36": _var(36, shared_adaln=True),
    "llamagen-b": _llamagen(12, 768, 12),
    "llamagen-l": _llamagen(24, 1024, 16),
    "llamagen-xl": _llamagen(36, 1280, 20),
    "llamagen-xxl": _llamagen(48, 1536, 24),
    "llamagen-3b": _llamagen(24, 3200, 32),
    "maskgit-b": {"type": "MaskedTransformer", "depth": 24, "width": 768, "num_heads": 12, "dropout": 0.1},
}
"""Complete sizes by name: the class under "type", then the fields of its config."""


def build_prior(
    name: str,
    layout: TokenLayout,
    num_classes: int,
    quantizer: Quantizer | None = None,
    *,
    class_names: Sequence[str] = (),
    **changes: Any,
) -> Prior:
    """A prior with initial weights: the configuration `name` of `PRIORS` with some sizes changed.

    Args:
        name: a key of `PRIORS`.
        layout: the tokens to model.
        num_classes: number of classes; 0 without labels.
        quantizer: quantizer of the tokenizer; a next-scale prior copies it, other priors do not need it.
        class_names: names of the classes, if they have any.
        changes: fields of the config.

    Raises:
        ValueError: an unknown name or size, a value of a wrong type, a prior that does not fit into memory, or tokens
            that this kind of prior cannot model.
    """
    one_of(tuple(PRIORS), prior=name)
    row = {**PRIORS[name], **changes}
    kind = row.pop("type")
    allowed = [field.name for field in fields(CONFIGS[kind])]
    for key in changes:
        if key not in allowed:
            raise ValueError(f"prior argument: got {key!r}, expected one of {', '.join(allowed)} for {kind}")
    sizes = construct(CONFIGS[kind], row)
    arguments: dict[str, Any] = {"layout": layout, "num_classes": num_classes, "config": sizes}
    if kind == "NextScaleTransformer":
        arguments["quantizer"] = _copied(name, quantizer)
    check_memory(lambda: PRIOR_TYPES[kind](**arguments))
    return PRIOR_TYPES[kind](**arguments, class_names=class_names)


def _copied(name: str, quantizer: Quantizer | None) -> MultiScaleQuantizer:
    """A copy of the multi-scale quantizer for a next-scale prior."""
    if not isinstance(quantizer, MultiScaleQuantizer):
        raise ValueError(f"prior: got {name} for a single-scale tokenizer, expected a multi-scale tokenizer")
    copied = quantizer_from_config(quantizer.config())
    copied.load_state_dict(quantizer.state_dict())
    assert isinstance(copied, MultiScaleQuantizer)
    return copied


def load_saved_prior(prior: str | Path) -> Prior:
    """A saved prior in eval mode, from a directory or the hub ("user/name"); `open_prior` also opens published ones.

    Raises:
        FileNotFoundError: no such directory, or no model in it.
        ValueError: not a prior.
    """
    folder = Path(prior)
    if folder.is_dir():
        path = folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: holds no config.json")
    elif not may_be_on_hub(prior):
        raise FileNotFoundError(f"{prior}: is not a folder with a saved prior")
    else:
        path = fetch(str(prior), "config.json")
    config = read_config(path)
    kind = config.get("type")
    if kind not in PRIOR_TYPES:
        raise ValueError(f"{path}: has type {kind!r}, expected one of {', '.join(PRIOR_TYPES)}")
    return PRIOR_TYPES[kind].from_pretrained(prior).eval()
