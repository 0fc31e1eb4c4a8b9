"""The runtime of several processes, as torchrun or accelerate launch starts them: Accelerate over torch.distributed.

Each process has the whole model; `fully_sharded.py` cuts it. It differs from `runtime.py`, one process, in what
`distribute` and `accumulate` do. Who takes which part of a batch, and what is decided together, is said by the loop
(`loop.py`, `agreement.py`).

Source: Gugger et al. 2022, "Accelerate"; DistributedDataParallel of Li et al. 2020 (arXiv 2006.15704).
"""

import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch.distributed as dist
from torch import nn

from smalti.ops.device import Precision, choose_dtype
from smalti.training.runtime import Runtime, choose_runtime, launched_processes

INSTALL = "pip install 'smalti[accelerate]'"


@final
@dataclass(frozen=True)
class ManyProcesses(Runtime):
    """One of several processes, each on its own device with its own part of every batch."""

    accelerator: Any
    """`accelerate.Accelerator`, which has joined the processes."""

    def distribute(self, module: nn.Module) -> nn.Module:
        """The module behind DistributedDataParallel: backward passes leave the mean gradient of all processes."""
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()):
            raise ValueError("norm: batch normalisation would see each process's part of a batch alone; use group")
        with warnings.catch_warnings():  # torch 2.13 renames broadcast_buffers, which Accelerate does not know yet
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            return self.accelerator.prepare_model(module)

    def accumulate(self, module: nn.Module, last: bool) -> AbstractContextManager:
        """See `Runtime.accumulate`."""
        return super().accumulate(module, last) if last else self.accelerator.no_sync(module)


def join_processes(
    device: str = "auto",
    precision: Precision = "auto",
    channels_last: bool | Literal["auto"] = "auto",
    compile: bool = False,
) -> ManyProcesses:
    """Join the other processes of the launch; decide what was left to "auto" as `choose_runtime` does.

    Raises:
        ValueError: the process was not launched as one of several, Accelerate is missing or is set to something else
            than data parallelism, or the device is a particular one: the launcher gives each process its own.
    """
    if launched_processes() == 1:
        raise ValueError("distributed: got true, but neither torchrun nor accelerate launch started this process")
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise ValueError(f"distributed: several processes need Accelerate; install it with: {INSTALL}") from error
    plain = choose_runtime(device, precision, channels_last, compile)
    if plain.device.index is not None:
        raise ValueError(f"device: got {device!r}, expected auto, cpu or cuda: each process gets a device of its own")
    # Buffers are equal by what is summed over processes; copying them from process 0 would only hide a difference.
    # The objective's parameters need not all have a gradient: a term may weigh 0, a φ may serve no scale.
    options = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    accelerator = Accelerator(cpu=plain.device.type == "cpu", mixed_precision="no", kwargs_handlers=[options])
    if accelerator.distributed_type not in ("MULTI_CPU", "MULTI_GPU"):
        kind = accelerator.distributed_type.value
        raise ValueError(f"accelerate: got {kind}, expected data parallelism on CPUs or GPUs (MULTI_CPU, MULTI_GPU)")
    return ManyProcesses(
        device=accelerator.device,
        dtype=choose_dtype(precision, accelerator.device),
        channels_last=plain.channels_last,
        compile=compile,
        accelerator=accelerator,
    )


def leave_processes() -> None:
    """Part from the other processes, at the end of this one; nothing where it is the only one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
