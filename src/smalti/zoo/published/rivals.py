"""Families with equal names and shapes but different tokens: how to tell which family a checkpoint belongs to.

If a checkpoint fits two families and nothing else tells them apart, the user must choose; there is no guess.
"""

from collections.abc import Callable
from dataclasses import dataclass

from smalti.zoo.published.checkpoints import Candidate
from smalti.zoo.published.family import has

Verdict = tuple[str, str] | None
"""A family and the reason; None: nothing tells."""


@dataclass(frozen=True)
class Rivals:
    """Families whose checkpoints look alike."""

    families: tuple[str, str]
    """Their keys."""
    difference: str
    """Why their tokens differ, for messages."""
    tell: Callable[[Candidate], Verdict]
    """Which one a checkpoint is."""


def nearest_or_dot(candidate: Candidate) -> Verdict:
    """The nearest code or the largest dot product: taming's training files hold its loss, Emu3.5's a bare model."""
    if not has(candidate, r"quantize\.embedding\."):
        return "taming", "it has no codebook to compare with"
    if has(candidate, r"loss\.") or any(name.startswith("loss.") for name in candidate.rest):
        return "taming", "the file holds the loss that it was trained with"
    if "ddconfig" in candidate.yaml:
        return "emu35-ibq", "config.yaml beside it has Emu3.5's layout"
    model = candidate.yaml.get("model")
    if isinstance(model, dict) and "ddconfig" in (model.get("params") or {}):
        return "taming", "config.yaml or the YAML file of its name beside it has taming's layout"
    return None


def one_token_or_groups(candidate: Candidate) -> Verdict:
    """All signs in one token or eight a token: the discriminators differ, and not every width is one of groups."""
    bits = _size(candidate, "encoder.conv_out.bias", 0)
    for name, verdict in (("main", "wetok"), ("block", "open-magvit2")):
        if has(candidate, rf"loss\.discriminator\.{name}"):
            return verdict, f"its discriminator is called {name}"
    if "wetok" in str(candidate.yaml).lower():
        return "wetok", "config.yaml beside it names it"
    if bits and _size(candidate, "decoder.conv_in.weight", 1) == 2 * bits:
        return "wetok", "its decoder takes noise beside the codes"
    if bits > 62:
        return "wetok", f"{bits} bits are too many for one token"
    if bits % 8 or bits == 8:
        return "open-magvit2", f"{bits} bits are not several groups of 8"
    return None


def _size(candidate: Candidate, name: str, axis: int) -> int:
    """The size of a tensor along an axis; 0 if there is none."""
    tensor = candidate.tensors.get(name)
    return 0 if tensor is None or tensor.dim() <= axis else tensor.shape[axis]


RIVALS = (
    Rivals(("taming", "emu35-ibq"), "the nearest code or the largest dot product", nearest_or_dot),
    Rivals(("open-magvit2", "wetok"), "all bits in one token or 8 per token", one_token_or_groups),
)
"""All of them; families between which tokens do not differ need no row."""
