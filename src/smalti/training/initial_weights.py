"""Fine-tuning: a fresh run that begins from the weights of another model, ours or published.

Only weights are taken, no optimizer, no step count. Encoder and decoder take every tensor whose name and shape agree
and keep the rest fresh. A quantizer's tensors describe each other (a codebook, its counts, its sums), so it is taken
whole or not at all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smalti.quantizers import Quantizer
from smalti.quantizers.vector import CodebookQuantizer
from smalti.tokenizers import Tokenizer

PARTS = ("encoder", "quantizer", "decoder")
NAMED_AT_MOST = 4
"""How many fresh tensors of a part are named."""


@dataclass(frozen=True)
class PartTaken:
    """What a part of the model got from the other one."""

    part: str
    """encoder, quantizer or decoder."""
    taken: int
    """Number of tensors taken."""
    fresh: tuple[str, ...]
    """The others, each with the reason."""

    def __str__(self) -> str:
        if not self.fresh:
            return f"{self.part} taken"
        named = ", ".join(self.fresh[:NAMED_AT_MOST])
        more = f" and {len(self.fresh) - NAMED_AT_MOST} more" if len(self.fresh) > NAMED_AT_MOST else ""
        beginning = f"{self.taken} tensors of {self.part} taken, fresh are" if self.taken else f"{self.part} fresh:"
        return f"{beginning} {named}{more}"


@torch.no_grad()
def take_weights(model: Tokenizer, source: Tokenizer) -> list[PartTaken]:
    """Copy into `model` what fits of `source`, and say what stays fresh.

    Raises:
        ValueError: nothing fits.
    """
    report = [_take_part(part, getattr(model, part), getattr(source, part)) for part in PARTS]
    if not any(part.taken for part in report):
        raise ValueError(f"init_from: no tensor fits this model; {'; '.join(map(str, report))}")
    return report


def _take_part(part: str, module: nn.Module, source: nn.Module) -> PartTaken:
    own, theirs = module.state_dict(), source.state_dict()
    fresh = {name: reason for name in own if (reason := _misfit(own[name], theirs.get(name)))}
    if isinstance(module, Quantizer):
        if fresh:
            fresh = {name: fresh.get(name, "") for name in sorted(own, key=lambda name: name not in fresh)}
        else:
            _skip_initialisation(module)
    for name in own.keys() - fresh.keys():
        own[name].copy_(theirs[name])
    return PartTaken(part, len(own) - len(fresh), tuple(f"{name}{reason}" for name, reason in fresh.items()))


def _misfit(own: Tensor, theirs: Tensor | None) -> str:
    """Why a tensor cannot be taken; empty if it can."""
    if theirs is None:
        return " (not there)"
    return "" if own.shape == theirs.shape else f" ({tuple(theirs.shape)} there, {tuple(own.shape)} here)"


def _skip_initialisation(quantizer: Quantizer) -> None:
    """A codebook that was taken must not be started anew from the first batches."""
    for module in quantizer.modules():
        if isinstance(module, CodebookQuantizer):
            module.init = None
