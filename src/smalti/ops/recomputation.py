"""Detects recomputation: activation checkpointing runs a forward pass again inside the backward pass.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174). Side effects of a forward
pass, such as updating a moving average, must not be repeated.
"""

import torch


def recomputing() -> bool:
    """Whether this runs inside a backward pass, as in both variants of `torch.utils.checkpoint`.

    Compiled graphs recompute nothing in Python, so the result is False there.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
