"""Whether this machine can hold a model at all, asked before a byte of it is allocated.

Torch's meta device builds a model without its numbers. Sizes that were mistyped by some zeros are so refused in a
moment, where building would end in an error of the allocator, or be ended by the system.
"""

import os
from collections.abc import Callable
from itertools import chain

import torch
from torch import nn

from smalti.formats.arguments import first_line


def check_memory(build: Callable[[], nn.Module]) -> None:
    """Refuse a model of which one copy is larger than the memory.

    Args:
        build: makes the model; called under `torch.device("meta")`, where it draws no random number.

    Raises:
        ValueError: too large a model, or what `build` raises.
    """
    try:
        with torch.device("meta"):
            model = build()
        size = sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))
    except (RuntimeError, ArithmeticError, TypeError) as error:  # torch's words for sizes that overflow its integers
        raise ValueError(f"sizes: no model can have them: {first_line(error)}") from error
    if size > (memory := machine_memory()):
        raise ValueError(
            f"sizes: got a model of {size / 2**30:.1f} GiB, expected less than {memory / 2**30:.1f} GiB, "
            "the memory of this machine"
        )


def machine_memory() -> int:
    """Bytes of main memory; without limit where the system does not say."""
    if not hasattr(os, "sysconf"):
        return 2**63
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
