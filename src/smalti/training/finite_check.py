"""Checks whether the numbers of a step are finite: on the device in every step, by the program only now and then.

Each step stores its losses and its gradient norm here. `bad` is a flag on the device: 1 if one of them is NaN or
infinite. Then the step changes nothing (`state.py`), and the program need not wait to know. `look` reads all numbers
since the last look together, and reports non-finite ones with step and files.
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
"""Maximum number of files of a batch in an error message."""


class NonFiniteLossError(ValueError):
    """A loss term or the gradient is NaN or infinite; the weights are those before that step."""

    exit_code = 4
    """Exit code of the command line."""


class Numbers(NamedTuple):
    """A group of numbers of a step."""

    step: int
    """Number of the step, from 1."""
    names: Sequence[str]
    """Name of each number."""
    own_T: Tensor
    """The numbers of this process."""
    joined_T: Tensor
    """Sums over all processes, equal in each process."""
    sources: Sequence[str]
    """Their origin in this process, such as files."""


class FiniteCheck:
    """Checks the numbers of every step."""

    def __init__(self, device: torch.device, last: bool):
        """
        Args:
            device: device of the numbers.
            last: whether training ends with a bad step: then later steps change nothing either.
        """
        self.bad: Float[Tensor, ""] = torch.zeros((), device=device)
        """1 if a number of this step is not finite, else 0."""
        self._last, self._step = last, 0
        self._seen: list[Numbers] = []

    def begin(self, step: int) -> None:
        """Step number `step` begins."""
        self._step = step
        if not self._last:
            self.bad = torch.zeros_like(self.bad)

    def see(self, own: dict[str, Float[Tensor, ""]], joined_T: Float[Tensor, " t"], sources: Sequence[str]) -> None:
        """Record numbers of this step.

        Args:
            own: the numbers of this process, by name.
            joined_T: sums over all processes.
            sources: origin in this process, such as files.
        """
        joined_T = joined_T.detach().float()
        self.bad = torch.maximum(self.bad, (~joined_T.isfinite().all()).to(self.bad))
        own_T = torch.stack([number.detach().float() for number in own.values()])
        self._seen.append(Numbers(self._step, tuple(own), own_T, joined_T, sources))

    def due(self, every: int) -> bool:
        """Whether to look after this step: always if that needs no wait, else after step 1 and each `every` steps."""
        return reads_are_free(self.bad) or self._step == 1 or self._step % every == 0

    def look(self) -> dict[int, str]:
        """Bad steps since the last look, each with its reason. All processes look after the same steps."""
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
    """Name, step and files of a non-finite number, over all processes."""
    values = zip(numbers.names, numbers.own_T.tolist(), strict=True)
    bad = [f"{name} became {value}" for name, value in values if not math.isfinite(value)]
    culprits = [part for part in all_gather((bad, numbers.sources)) if part[0]]
    if not culprits:  # all numbers are finite, their sum is not
        culprits = [(["the sum of the losses over all processes overflowed"], numbers.sources)]
    files = [key for _, part in culprits for key in part]
    named = ", ".join(files[:NAMED_AT_MOST])
    more = f" and {len(files) - NAMED_AT_MOST} more" if len(files) > NAMED_AT_MOST else ""
    return f"{culprits[0][0][0]} at step {numbers.step}, on {named}{more}"
