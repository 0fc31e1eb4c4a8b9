"""Families with equal names and shapes but different tokens: how to find which family a checkpoint belongs to.

If nothing tells the two families apart, the user must choose.
"""

from collections.abc import Callable
from dataclasses import dataclass

from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import has

Verdict = tuple[str, str] | None
"""A family and the reason; None: not decided."""


@dataclass(frozen=True)
class Rivals:
    """Two families with similar checkpoints."""

    families: tuple[str, str]
    """Their keys."""
    difference: str
    """The difference of their tokens, for messages."""
    tell: Callable[[Candidate], Verdict]
    """Decides which of the two a checkpoint belongs to."""


def nearest_or_dot(candidate: Candidate) -> Verdict:
    """Nearest code or largest dot product: taming's training files contain its loss, Emu3.5's only the model."""
    if not has(candidate, r"quantize\.embedding\."):
        return "taming", "it has no codebook to compare with"
    if has(candidate, r"loss\.") or any(name.startswith("loss.") for name in candidate.rest):
        return "taming", "the file contains the loss of its training"
    if "ddconfig" in candidate.yaml:
        return "emu35-ibq", "config.yaml beside it has Emu3.5's layout"
    model = candidate.yaml.get("model")
    if isinstance(model, dict) and "ddconfig" in (model.get("params") or {}):
        return "taming", "config.yaml, or the YAML file with its name, has taming's layout"
    return None


def one_token_or_groups(candidate: Candidate) -> Verdict:
    """All signs in one token, or 8 signs per token: the discriminators differ, and groups need a multiple of 8 bits."""
    bits = _size(candidate, "encoder.conv_out.bias", 0)
    for name, verdict in (("main", "wetok"), ("block", "open-magvit2")):
        if has(candidate, rf"loss\.discriminator\.{name}"):
            return verdict, f"its discriminator is named {name}"
    if "wetok" in str(candidate.yaml).lower():
        return "wetok", "config.yaml beside it names it"
    if bits and _size(candidate, "decoder.conv_in.weight", 1) == 2 * bits:
        return "wetok", "its decoder takes noise in addition to the codes"
    if bits > 62:
        return "wetok", f"{bits} bits are too many for one token"
    if bits % 8 or bits == 8:
        return "open-magvit2", f"{bits} bits are not several groups of 8"
    return None


def _size(candidate: Candidate, name: str, axis: int) -> int:
    """The size of a tensor along an axis; 0 if the tensor is missing."""
    tensor = candidate.tensors.get(name)
    return 0 if tensor is None or tensor.dim() <= axis else tensor.shape[axis]


RIVALS = (
    Rivals(("taming", "emu35-ibq"), "the nearest code or the largest dot product", nearest_or_dot),
    Rivals(("open-magvit2", "wetok"), "all bits in one token or 8 per token", one_token_or_groups),
)
"""All rivals. Similar families with equal tokens need no row."""
