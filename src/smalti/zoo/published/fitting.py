"""Copies published tensors into a model, all or none: all differences are found and reported before any copy."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SHOWN = 10
"""Number of names of each kind in a message."""
STATISTICS = re.compile(r".*\.(running_mean|running_var|num_batches_tracked)")
"""Buffers that belong to the published weights. All other buffers are training state and keep their initial values."""


@dataclass(frozen=True)
class Disagreement:
    """Differences between tensors and a model, under the publisher's names."""

    missing: tuple[str, ...]
    """Tensors that the model needs and the checkpoint lacks."""
    surplus: tuple[str, ...]
    """Tensors of the checkpoint that the model does not have."""
    shapes: tuple[str, ...]
    """Tensors whose shape differs, with both shapes."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.surplus or self.shapes)

    def __str__(self) -> str:
        kinds = (
            ("missing", self._nearest(self.missing, self.surplus)),
            ("surplus", self._nearest(self.surplus, self.missing)),
            ("of another shape", list(self.shapes)),
        )
        return "; ".join(f"{len(names)} {kind}: {_shown(names)}" for kind, names in kinds if names)

    @staticmethod
    def _nearest(names: Iterable[str], others: Iterable[str]) -> list[str]:
        """Names in the order of their likeness to one of the others, so that misspelt names come first."""
        parts = [set(re.split(r"[._]", other)) for other in others]

        def likeness(name: str) -> float:
            own = set(re.split(r"[._]", name))
            return max((len(own & other) / len(own | other) for other in parts), default=0.0)

        return sorted(names, key=likeness, reverse=True)


def _shown(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def expected_shapes(model: nn.Module, *, split_qkv: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's tensors by name; with `split_qkv`, queries, keys and values are three tensors."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    shapes |= {name: tuple(buffer.shape) for name, buffer in model.named_buffers() if STATISTICS.fullmatch(name)}
    if not split_qkv:
        return shapes
    split: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if ".qkv." in name:
            split |= {name.replace(".qkv.", f".{part}."): (shape[0] // 3, *shape[1:]) for part in "qkv"}
        else:
            split[name] = shape
    return split


def compare(
    expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], originals: Mapping[str, str]
) -> Disagreement:
    """The missing and surplus tensors, and those of another shape.

    Args:
        expected: shapes of the model's tensors, by smalti's names.
        tensors: tensors of the checkpoint, by smalti's names.
        originals: the publisher's name for each name of smalti, for the message.
    """
    return Disagreement(
        missing=tuple(originals.get(name, name) for name in expected if name not in tensors),
        surplus=tuple(originals.get(name, name) for name in tensors if name not in expected),
        shapes=tuple(
            f"{originals.get(name, name)} is {tuple(tensor.shape)}, expected {expected[name]}"
            for name, tensor in tensors.items()
            if name in expected and tuple(tensor.shape) != expected[name]
        ),
    )


def load_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors that `compare` found to fit, in the model's own dtype."""
    with torch.no_grad():
        own = model.state_dict()
        for name, tensor in fused_qkv(tensors).items():
            own[name].copy_(tensor)


def fused_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with queries, keys and values as one tensor, as in smalti's attention."""
    fused = dict(tensors)
    for name in [name for name in tensors if ".q." in name]:
        parts = [fused.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        fused[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    return fused


def split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `fused_qkv`."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        names = [name.replace(".qkv.", f".{part}.") for part in "qkv"] if ".qkv." in name else [name]
        split |= dict(zip(names, tensor.chunk(len(names)), strict=True))
    return split


def reshaped(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors with the model's axes of length 1. Some publishers store a 1x1 convolution as a linear layer or the
    reverse, and some keep axes along which a tensor is repeated."""

    def matched(tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        longer = [length for length in tensor.shape if length > 1]
        return tensor.reshape(shape) if shape and longer == [length for length in shape if length > 1] else tensor

    return {name: matched(tensor, expected.get(name)) for name, tensor in tensors.items()}
