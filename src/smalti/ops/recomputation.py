"""Whether a forward pass is a repetition: activation checkpointing runs it again inside the backward pass.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174). What a pass does beside
its result, such as moving an average, must not happen again when it is repeated.
"""

import torch


def recomputing() -> bool:
    """Whether this runs inside a backward pass, as both variants of `torch.utils.checkpoint` repeat a forward pass.

    Inside a compiled graph there is no repetition in Python, so the answer is no.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
