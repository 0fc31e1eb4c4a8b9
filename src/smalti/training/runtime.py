"""Where and how a training step runs: device, number format, memory layout, compilation, processes.

The loop knows none of this; it calls the methods of `Runtime`, which is a single process on one device. `ManyProcesses`
is one of several, as torchrun or accelerate launch starts them: Accelerate over torch.distributed. It differs in what
`distribute` and `accumulate` do. Each of its processes has the whole model; `fully_sharded.py` cuts it. Who takes which
part of a batch, and what is decided together, is said by the loop (`loop.py`, `collectives.py`).

Source: Gugger et al. 2022, "Accelerate"; DistributedDataParallel of Li et al. 2020 (arXiv 2006.15704).
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.distributed as dist
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from smalti.models import SavedModel
from smalti.ops.device import Precision, choose_dtype, find_device
from smalti.ops.pixels import to_float
from smalti.tokenizers import Tokenizer

INSTALL = "pip install 'smalti[accelerate]'"


@dataclass(frozen=True)
class Runtime:
    """One process on one device."""

    device: torch.device
    """Where model and images are."""
    dtype: torch.dtype
    """Number format of forward passes, by autocast; weights, losses and quantizers stay in fp32."""
    channels_last: bool
    """Whether images and convolution kernels lie in memory as NHWC."""
    compile: bool
    """Whether encoder and decoder run through torch.compile."""

    def prepare(self, model: SavedModel) -> None:
        """Move a model to its device and layout, in place; compile a tokenizer where that was asked for.

        The quantizer is never compiled: it decides by values (is a code dead?) and draws random numbers, and its
        searches are a few large kernels already.
        """
        self.move(model)
        if self.compile and isinstance(model, Tokenizer):
            model.encoder.compile()
            model.decoder.compile()

    def move(self, module: nn.Module) -> None:
        """Move a module to the device and layout, in place."""
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def distribute(self, module: nn.Module) -> nn.Module:
        """What to call in a module's stead, so that its gradients become the means over all processes: here itself."""
        return module

    def accumulate(self, module: nn.Module, last: bool) -> AbstractContextManager:
        """The context of a forward and backward pass; only the last one of a step exchanges gradients."""
        return nullcontext()

    def shard(self, state: Any) -> Callable[[], Any]:
        """Cut a `TrainingState` over the processes, in place, where that was asked for: here not.

        Returns:
            What gathers it again to be written; all processes call it, and the first one gets the whole.
        """
        return lambda: state

    def place(self, image: Float[Tensor, "b c h w"] | UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images (B, C, H, W) on the device, in the layout of the model; uint8 becomes -1...1 there, after the copy."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        there = self.send(image).contiguous(memory_format=layout)
        return to_float(there) if there.dtype == torch.uint8 else there

    def send(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU on the device; a GPU fetches it from pinned memory by itself, so nobody waits.

        The loader has pinned training images already; samples, validation images and tokens are pinned here.
        """
        pinned = tensor.pin_memory() if self.device.type == "cuda" and not tensor.is_pinned() else tensor
        return pinned.to(self.device, non_blocking=True)

    @contextmanager
    def fast_products(self) -> Iterator[None]:
        """The context of a run. On CUDA cuDNN times its algorithms and takes the fastest, and products of fp32 matrices
        round their factors to TF32, as convolutions do anyway. A format that the user chose for them stays.

        Code search stays exact: its kernels choose their own format, and its products in plain torch are in fp64.
        """
        products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        former, undecided = cudnn.benchmark, products.fp32_precision == "none"
        if self.device.type != "cuda":
            yield
            return
        cudnn.benchmark = True
        if undecided:
            products.allow_tf32 = True  # not fp32_precision: torch.compile asks in a way that would then raise
        try:
            yield
        finally:
            cudnn.benchmark = former
            if undecided:
                products.allow_tf32 = False
                products.fp32_precision = "none"

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self) -> torch.amp.GradScaler:
        """What keeps small gradients of fp16 from becoming 0; for other formats, which need none, it does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


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


def choose_runtime(
    device: str = "auto",
    precision: Precision = "auto",
    channels_last: bool | Literal["auto"] = "auto",
    compile: bool = False,
) -> Runtime:
    """Decide what was left to "auto": CUDA if there is one, bf16 where the hardware multiplies it, NHWC everywhere.

    Raises:
        ValueError: the device does not exist here.
    """
    chosen = find_device(device)
    return Runtime(
        device=chosen,
        dtype=choose_dtype(precision, chosen),
        channels_last=True if channels_last == "auto" else channels_last,
        compile=compile,
    )


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


def launched_processes() -> int:
    """How many processes torchrun or accelerate launch started for this run, by the environment; 1: none of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Which of them this process is, from 0."""
    return int(os.environ.get("RANK", "0"))
