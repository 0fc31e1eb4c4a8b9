"""Tells whether reading a tensor's value is free, that is, needs no device synchronization.

A GPU processes a queue. `int(x)`, `x.any()` in an `if` and `x[mask]` make the program wait until the queue is empty,
and the GPU then waits for the program. On the CPU the value is available, and reading it may save much computation.
"""

import torch
from torch import Tensor

from smalti.ops.graphs import recording

WAITING = {"cuda", "meta"}
"""Device types on which training steps and encoding never read values; a meta tensor has none."""


def reads_are_free(tensor: Tensor) -> bool:
    """Whether values of this tensor can be read without synchronization and without breaking a recorded graph."""
    return tensor.device.type not in WAITING and not recording()


def worth_a_wait(tensor: Tensor) -> bool:
    """Whether a check may read values: if that is free, or on a GPU if nothing is trained or recorded."""
    return reads_are_free(tensor) or not (torch.is_grad_enabled() or recording() or tensor.device.type == "meta")
