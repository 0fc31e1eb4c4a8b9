"""Tells whether torch is recording operations instead of only running them.

`torch.compile` and `torch.export` record a graph; `torch.jit.trace`, and the ONNX exporter based on it, record a trace.
Neither may depend on tensor values: a check of values breaks a graph and becomes a constant in a trace.
"""

import torch


def recording() -> bool:
    """Whether the current code is being compiled, exported or traced."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
