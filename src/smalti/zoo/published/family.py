"""A family of published models: how the loader recognises it, renames its tensors and builds the model."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from smalti.ops.nearest import Metric
from smalti.quantizers import Quantizer, VectorQuantizer
from smalti.quantizers.index_backpropagation import IndexBackpropagationQuantizer
from smalti.tokenizers import VQGAN
from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.inference import Shapes, codebook_shape, image_channels, infer_pyramid
from smalti.zoo.published.names import NameTable

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Family(Generic[Model]):
    """Tokenizers or priors of one publisher."""

    title: str
    """Name shown to users."""
    url: str
    """Page of the code or of the weights."""
    licence: str
    """Licence of the weights, as the publisher states it."""
    names: Callable[[Candidate], NameTable]
    """Table of the publisher's tensor names and smalti's; it may depend on the tensors in the file."""
    recognises: Callable[[Candidate], bool]
    """Whether a table of tensors belongs to this family, by features that only this family has."""
    build: Callable[..., Model]
    """`build(shapes, config, source, **options)`: builds a model for shapes by smalti's names. The options are those
    that users may give; for a prior, `tokenizer` is one of them."""
    averaged: bool = False
    """Whether the publisher evaluates averaged weights. They are then loaded if the checkpoint has them."""
    frozen: str = ""
    """Pattern for the start of names that are not trained and thus have no averaged copy."""
    ignored: str = ""
    """Pattern for the start of names that only training needs, in addition to those that all families ignore."""
    supplied: str = ""
    """Pattern for the start of smalti's names that are not in the file: the quantizer of a prior's tokenizer."""
    facts: Callable[[Candidate], Mapping[str, Any]] = lambda candidate: {}
    """Options of `build` that are read from values of tensors or from the configuration."""
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors
    """Converts tensors, under smalti's names, from the publisher's layout to the model's."""


def has(candidate: Candidate, pattern: str) -> bool:
    """Whether the start of a tensor's name matches `pattern`."""
    return any(re.match(pattern, name) for name in candidate.tensors)


def vqgan(
    metric: Metric = "euclidean", image_range: Sequence[float] = (-1.0, 1.0), **fixed: Any
) -> Callable[..., VQGAN]:
    """The `build` function of a family with one codebook.

    Args:
        metric: published value, the default of the option.
        image_range: published value, the default of the option.
        fixed: arguments of `build_vqgan` that users cannot change.
    """
    published_metric, published_range = metric, image_range

    def build(
        shapes: Shapes,
        config: Mapping[str, Any],
        source: Mapping[str, Any],
        *,
        metric: Metric = published_metric,
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
    """A VQGAN with inferred sizes. `encoder`, `decoder` and `channels` replace single values.

    `exact_norms` is set only by families that were added after it, so that the tokens of the older ones do not change.
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


def codebook(shapes: Shapes, metric: Metric) -> Quantizer:
    """A codebook of the checkpoint's size with the given metric."""
    size, dim = codebook_shape(shapes)
    if metric == "dot":
        return IndexBackpropagationQuantizer(size, dim)
    return VectorQuantizer(size, dim, metric=metric)
