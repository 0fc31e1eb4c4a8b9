"""What a family of published tokenizers is to the loader: how to recognise it, rename its tensors and build it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from smalti.quantizers import Quantizer, VectorQuantizer
from smalti.quantizers.index_backpropagation import IndexBackpropagationQuantizer
from smalti.tokenizers import VQGAN, Tokenizer
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.inference import Shapes, codebook_shape, image_channels, infer_pyramid
from smalti.zoo.published.names import NameTable


@dataclass(frozen=True)
class Family:
    """One publisher's tokenizers."""

    title: str
    """Name for people."""
    url: str
    """Where code and weights were published."""
    licence: str
    """Licence that the publisher states for the weights."""
    names: Callable[[Candidate], NameTable]
    """Their tensor names and ours; a table may depend on what is there."""
    recognises: Callable[[Candidate], bool]
    """Whether a table of tensors is of this family, from what only this family has."""
    build: Callable[..., Tokenizer]
    """`build(shapes, config, source, **options)`: a model for shapes by our names; the keyword arguments after the
    first three are the options that users may give."""
    averaged: bool = False
    """Whether the publisher evaluates averaged weights; they are used where a checkpoint has them."""
    frozen: str = ""
    """Pattern of names (their start) that training leaves alone, so that they have no averaged copy."""
    ignored: str = ""
    """Pattern of names (their start) that belong to training, beside those that all families ignore."""
    facts: Callable[[Candidate], Mapping[str, Any]] = lambda candidate: {}
    """Options of `build` that values of tensors tell, where names and shapes do not."""
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors
    """Tensors under our names as the model has them, where the publisher stores them otherwise."""


def has(candidate: Candidate, pattern: str) -> bool:
    """Whether a tensor's name begins as `pattern` says."""
    return any(re.match(pattern, name) for name in candidate.tensors)


def build_vqgan(
    shapes: Shapes,
    source: Mapping[str, Any],
    quantizer: Quantizer,
    *,
    encoder: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
    norm_groups: int = 32,
    num_heads: int = 1,
    exact_norms: bool = False,
    channels: int | None = None,
    **options: Any,
) -> VQGAN:
    """A VQGAN whose sizes are inferred; `encoder`, `decoder`, `channels` overrule single values, the rest goes on.

    `exact_norms` is for families that came after it; the tokens of the others stay as they were.
    """
    sizes = {"norm_groups": norm_groups, "num_heads": num_heads}
    halves = [
        {**infer_pyramid(shapes, half, **sizes), **(given or {})}
        for half, given in (("encoder", encoder), ("decoder", decoder))
    ]
    if exact_norms:
        halves = [{**half, "style": {**half["style"], "exact_norms": True}} for half in halves]
    return VQGAN(
        halves[0],
        quantizer,
        halves[1],
        image_channels=channels or image_channels(shapes),
        source=source,
        **options,
    )


def codebook(shapes: Shapes, metric: str) -> Quantizer:
    """A codebook of the checkpoint's size under the given metric."""
    size, dim = codebook_shape(shapes)
    if metric == "dot":
        return IndexBackpropagationQuantizer(size, dim)
    return VectorQuantizer(size, dim, metric=metric)
