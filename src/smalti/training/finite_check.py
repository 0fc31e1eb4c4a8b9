"""Whether the numbers of a step are finite: decided on the device at once, read by the program now and then.

A step leaves its losses and the norm of its gradient here. `bad` says on the device whether one of them is NaN or
infinite, and keeps the step from changing anything (`state.py`); the program need not know. `look` reads all numbers
since the last look at once, and says which were bad, at which step and on which files.
每一步的损失和梯度范数留在设备上；`bad` 在设备上判断是否有限并使坏的一步不产生任何改变，程序只需偶尔读取一次。

Legend: T numbers; a scalar has shape ().
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from smalti.distributed import all_gather
from smalti.ops.waiting import reads_are_free

NAMED_AT_MOST = 8
"""How many files of a batch an error names."""


class NonFiniteLossError(ValueError):
    """A loss term or the gradient became NaN or infinite; the weights are those before that step."""

    exit_code = 4
    """What the command line ends with."""


class Numbers(NamedTuple):
    """Some numbers of a step."""

    step: int
    """Of which step, from 1."""
    names: Sequence[str]
    """What each number is."""
    own_T: Tensor
    """Those of this process."""
    joined_T: Tensor
    """Their sums over all processes, the same in each."""
    sources: Sequence[str]
    """What of this process led to them, such as files."""


class FiniteCheck:
    """Sees the numbers of every step."""

    def __init__(self, device: torch.device, last: bool):
        """
        Args:
            device: where the numbers are.
            last: whether a bad step is the last: no later one changes anything either.
        """
        self.bad: Float[Tensor, ""] = torch.zeros((), device=device)
        """1 where a number of this step is not finite, else 0."""
        self._last, self._step = last, 0
        self._seen: list[Numbers] = []

    def begin(self, step: int) -> None:
        """Step number `step` begins."""
        self._step = step
        if not self._last:
            self.bad = torch.zeros_like(self.bad)

    def see(self, own: dict[str, Float[Tensor, ""]], joined_T: Float[Tensor, " t"], sources: Sequence[str]) -> None:
        """Take in numbers of this step.

        Args:
            own: those of this process, by name.
            joined_T: their sums over all processes.
            sources: what of this process led to them, such as files.
        """
        joined_T = joined_T.detach().float()
        self.bad = torch.maximum(self.bad, (~joined_T.isfinite().all()).to(self.bad))
        own_T = torch.stack([number.detach().float() for number in own.values()])
        self._seen.append(Numbers(self._step, tuple(own), own_T, joined_T, sources))

    def due(self, every: int) -> bool:
        """Whether to look after this step: where that means waiting, only after the first and every so many."""
        return reads_are_free(self.bad) or self._step == 1 or self._step % every == 0

    def look(self) -> dict[int, str]:
        """The bad steps since the last look and what was wrong with each. All processes look after the same steps."""
        seen, self._seen = self._seen, []
        reasons: dict[int, str] = {}
        if not seen:
            return reasons
        values = iter(torch.cat([numbers.joined_T for numbers in seen]).tolist())
        for numbers in seen:
            bad = [name for name in numbers.names if not math.isfinite(next(values))]
            if bad and numbers.step not in reasons:
                reasons[numbers.step] = _reason(numbers)
        return reasons


def _reason(numbers: Numbers) -> str:
    """Which number, which step, which files, of all processes."""
    values = zip(numbers.names, numbers.own_T.tolist(), strict=True)
    bad = [f"{name} became {value}" for name, value in values if not math.isfinite(value)]
    culprits = [part for part in all_gather((bad, numbers.sources)) if part[0]]
    if not culprits:  # finite numbers whose sum is not
        culprits = [(["the sum of the losses over all processes overflowed"], numbers.sources)]
    files = [key for _, part in culprits for key in part]
    named = ", ".join(files[:NAMED_AT_MOST])
    more = f" and {len(files) - NAMED_AT_MOST} more" if len(files) > NAMED_AT_MOST else ""
    return f"{culprits[0][0][0]} at step {numbers.step}, on {named}{more}"
