"""Where looking at a value costs nothing.

A GPU works through a queue. `int(x)`, `x.any()` in an `if` and `x[mask]` make the program wait until the queue is
empty, and the GPU then waits for the program. On the CPU the value is there, and a look may save much work.
在 GPU 上读取一个数值会让程序等待整个队列;在 CPU 上读取没有代价,还常能省下大量计算。
"""

import torch
from torch import Tensor

from smalti.ops.graphs import recording

WAITING = {"cuda"}
"""Types of devices whose values a training step and an encoding never look at."""


def reads_are_free(tensor: Tensor) -> bool:
    """Whether a value of this tensor may decide what is done next: no queue is waited for, no graph is recorded."""
    return tensor.device.type not in WAITING and not recording()


def worth_a_wait(tensor: Tensor) -> bool:
    """Whether a check may look at values: where that is free, and on a GPU where nothing is trained or recorded."""
    return reads_are_free(tensor) or not (torch.is_grad_enabled() or recording())
