"""Whether torch is recording operations instead of running them.

`torch.compile` and `torch.export` record a graph, `torch.jit.trace` and the ONNX exporter built on it a trace. Neither
can look at values: a check of them would break the first and become a constant in the second.
"""

import torch


def recording() -> bool:
    """Whether what runs now is being compiled, exported or traced."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
