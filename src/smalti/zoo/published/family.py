"""What a family of published models is to the loader: how to recognise it, rename its tensors and build it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from smalti.quantizers import Quantizer, VectorQuantizer
from smalti.quantizers.index_backpropagation import IndexBackpropagationQuantizer
from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.inference import Shapes, codebook_shape, image_channels, infer_pyramid
from smalti.zoo.published.names import NameTable

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Family(Generic[Model]):
    """One publisher's tokenizers, or priors."""

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
    build: Callable[..., Model]
    """`build(shapes, config, source, **options)`: a model for shapes by our names; the keyword arguments after the
    first three are the options that users may give. A prior's `tokenizer` is one of them."""
    averaged: bool = False
    """Whether the publisher evaluates averaged weights; they are used where a checkpoint has them."""
    frozen: str = ""
    """Pattern of names (their start) that training leaves alone, so that they have no averaged copy."""
    ignored: str = ""
    """Pattern of names (their start) that belong to training, beside those that all families ignore."""
    supplied: str = ""
    """Pattern of our names (their start) that do not come from the file: the quantizer of a prior's tokenizer."""
    facts: Callable[[Candidate], Mapping[str, Any]] = lambda candidate: {}
    """Options of `build` that values of tensors tell, where names and shapes do not."""
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors
    """Tensors under our names as the model has them, where the publisher stores them otherwise."""


def has(candidate: Candidate, pattern: str) -> bool:
    """Whether a tensor's name begins as `pattern` says."""
    return any(re.match(pattern, name) for name in candidate.tensors)


def vqgan(metric: str = "euclidean", image_range: Sequence[float] = (-1.0, 1.0), **fixed: Any) -> Callable[..., VQGAN]:
    """The `build` of a family whose tokens are rows of one codebook.

    Args:
        metric: the published one, which users may change, as they may the range.
        image_range: the published one.
        fixed: what is always so in this family, as `build_vqgan` takes it.
    """
    published_metric, published_range = metric, image_range

    def build(
        shapes: Shapes,
        config: Mapping[str, Any],
        source: Mapping[str, Any],
        *,
        metric: str = published_metric,
        image_range: Sequence[float] = published_range,
        norm_groups: int = 32,
    ) -> VQGAN:
        """A VQGAN of the checkpoint's sizes with a codebook."""
        options = {**fixed, "image_range": image_range, "norm_groups": norm_groups}
        return build_vqgan(shapes, source, codebook(shapes, metric), **options)

    return build


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
    encoder_only: bool = False,
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
        None if encoder_only else halves[1],
        encoder_only=encoder_only,
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
