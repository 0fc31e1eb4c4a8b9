"""Checks, before any allocation, that a model fits into the memory of this machine.

Torch's meta device builds a model without its weights. So mistyped sizes are refused at once; otherwise the allocator
would fail, or the system would kill the process.
"""

import os
from collections.abc import Callable
from itertools import chain

import torch
from torch import nn

from smalti.formats.arguments import first_line


def check_memory(build: Callable[[], nn.Module]) -> None:
    """Refuse a model that is larger than the memory.

    Args:
        build: makes the model; called under `torch.device("meta")`, where it draws no random numbers.

    Raises:
        ValueError: the model is too large, or an error of `build`.
    """
    try:
        with torch.device("meta"):
            model = build()
        size = sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))
    except (RuntimeError, ArithmeticError, TypeError) as error:  # from torch: sizes overflow its integers
        raise ValueError(f"sizes: impossible for a model: {first_line(error)}") from error
    if size > (memory := machine_memory()):
        raise ValueError(
            f"sizes: got a model of {size / 2**30:.1f} GiB, expected less than {memory / 2**30:.1f} GiB, "
            "the memory of this machine"
        )


def machine_memory() -> int:
    """Main memory in bytes; a huge number if the system does not report it."""
    if not hasattr(os, "sysconf"):
        return 2**63
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
