"""Fine-tuning: a new run starts from the weights of another model, trained with smalti or published.

Only weights are copied, not the optimizer state or the step count. Encoder and decoder copy every tensor with equal
name and shape; other tensors keep their initial values. The tensors of a quantizer depend on each other (a codebook,
its counts, its sums), so all of them are copied or none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smalti.quantizers import Quantizer
from smalti.quantizers.vector import CodebookQuantizer
from smalti.tokenizers import Tokenizer

PARTS = ("encoder", "quantizer", "decoder")
NAMED_AT_MOST = 4
"""Maximum number of tensors named in a message."""


@dataclass(frozen=True)
class PartTaken:
    """The result of copying one part of the model."""

    part: str
    """encoder, quantizer or decoder."""
    taken: int
    """Number of copied tensors."""
    fresh: tuple[str, ...]
    """Tensors that were not copied, each with the reason."""

    def __str__(self) -> str:
        if not self.fresh:
            return f"{self.part} taken"
        named = ", ".join(self.fresh[:NAMED_AT_MOST])
        more = f" and {len(self.fresh) - NAMED_AT_MOST} more" if len(self.fresh) > NAMED_AT_MOST else ""
        beginning = f"{self.taken} tensors of {self.part} taken, others" if self.taken else self.part
        return f"{beginning} not taken: {named}{more}"


@torch.no_grad()
def take_weights(model: Tokenizer, source: Tokenizer) -> list[PartTaken]:
    """Copy the tensors of `source` that fit into `model`, and report those that do not.

    Raises:
        ValueError: no tensor fits.
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
    """Why a tensor cannot be copied; empty if it can."""
    if theirs is None:
        return " (missing)"
    return "" if own.shape == theirs.shape else f" (got shape {tuple(theirs.shape)}, expected {tuple(own.shape)})"


def _skip_initialisation(quantizer: Quantizer) -> None:
    """Mark the codebook as initialised, so that the first batches do not overwrite it."""
    for module in quantizer.modules():
        if isinstance(module, CodebookQuantizer):
            module.init = None
