"""The runtime of a training step: device, number format, memory layout, compilation, processes.

The loop only calls the methods of `Runtime`, which is a single process on one device. `ManyProcesses` is one of several
processes started by torchrun or accelerate launch, with Accelerate over torch.distributed; it overrides `distribute`
and `accumulate`. Each of its processes has the whole model; `fully_sharded.py` shards it. The division of batches and
joint decisions are in `loop.py` and `collectives.py`.
训练步的运行环境：设备、数值格式、内存布局、编译与进程。

Source: Gugger et al. 2022, "Accelerate"; DistributedDataParallel of Li et al. 2020 (arXiv 2006.15704).
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
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
    """Device of model and images."""
    dtype: torch.dtype
    """Number format of forward passes (autocast); weights, losses and quantizers stay in fp32."""
    channels_last: bool
    """Whether images and convolution kernels have the memory layout NHWC."""
    compile: bool
    """Whether encoder and decoder are compiled with torch.compile."""

    def prepare(self, model: SavedModel) -> None:
        """Move a model to its device and layout, in place; with `compile`, compile a tokenizer.

        The quantizer is never compiled: its control flow depends on values (dead codes), it draws random numbers, and
        its search already is a few large kernels.
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
        """A wrapper that averages gradients over all processes; here the module itself."""
        return module

    def accumulate(self, module: nn.Module, last: bool) -> AbstractContextManager:
        """The context of a forward and backward pass; only the last one of a step exchanges gradients."""
        return nullcontext()

    def shard(self, state: Any) -> Callable[[], Any]:
        """Shard a `TrainingState` over the processes, in place; here it stays whole.

        Returns:
            A function that gathers the state for writing; all processes call it, and the first gets the whole state.
        """
        return lambda: state

    def place(self, image: Float[Tensor, "b c h w"] | UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images (B, C, H, W) on the device, in the layout of the model; uint8 becomes -1...1 there, after the copy."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        there = self.send(image).contiguous(memory_format=layout)
        return to_float(there) if there.dtype == torch.uint8 else there

    def send(self, tensor: Tensor) -> Tensor:
        """Copy a CPU tensor to the device; to a GPU while it computes.

        A stream is a queue of work for the GPU: what is in one stream runs in order, and streams run side by side. The
        program only fills the queues. As no step waits, it sends the batch of the next step while the GPU still
        computes the current one. In the stream of the kernels the copy would wait behind them. It has its own stream,
        and only the kernels queued after it wait for it. It starts from pinned memory, else the program would wait.

        The loader has already pinned training images; samples, validation images and tokens are pinned here.
        流是 GPU 的任务队列：同一流内按序执行，不同流并行。程序只负责排队，因此 GPU 还在算当前步时，下一步的批次
        已经送出；拷贝用单独的流，就不必排在这些核函数之后，只有其后排队的核函数才等待它。
        """
        if self.device.type != "cuda":
            return tensor.to(self.device, non_blocking=True)
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        kernels = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            sent = pinned.to(self.device, non_blocking=True)
        kernels.wait_stream(self._copies)  # the GPU waits, not the program
        # The memory belongs to the stream of copies: without this, the next copy could overwrite it before the kernels
        # have read it / 这块显存属于拷贝流：若不登记，核函数尚未读完，下一次拷贝就可能覆盖它
        sent.record_stream(kernels)
        return sent

    @cached_property
    def _copies(self) -> torch.cuda.Stream:
        """The stream of copies to the GPU."""
        return torch.cuda.Stream(self.device)

    @contextmanager
    def fast_products(self) -> Iterator[None]:
        """The context of a run. On CUDA, cuDNN times its algorithms for the fastest, and matrix products in fp32 use
        TF32, as convolutions do by default. A precision set by the user is kept.

        Code search stays exact: its kernels set their own format, and its products in plain torch are in fp64.
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
        """The loss scaler, which keeps small fp16 gradients from becoming 0; switched off for other formats."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


@final
@dataclass(frozen=True)
class ManyProcesses(Runtime):
    """One of several processes, each on its own device with its own part of every batch."""

    accelerator: Any
    """The `accelerate.Accelerator` that joined the processes."""

    def distribute(self, module: nn.Module) -> nn.Module:
        """The module in DistributedDataParallel: backward passes average the gradients of all processes."""
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()):
            raise ValueError(
                "norm: got 'batch', expected group: each process would normalise its own part of the batch"
            )
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
    """Resolve "auto" settings: CUDA if available, bf16 if the hardware supports it, NHWC always.

    Raises:
        ValueError: the device is not available.
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
    """Join the other processes of the launch; resolve "auto" settings as in `choose_runtime`.

    Raises:
        ValueError: the process was not launched as one of several, Accelerate is missing or not configured for data
            parallelism, or a specific device is given: each process gets its own device from the launcher.
    """
    if launched_processes() == 1:
        raise ValueError("distributed: got true, but neither torchrun nor accelerate launch started this process")
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise ValueError(f"distributed: several processes need Accelerate; install it with: {INSTALL}") from error
    plain = choose_runtime(device, precision, channels_last, compile)
    if plain.device.index is not None:
        raise ValueError(f"device: got {device!r}, expected auto, cpu or cuda; each process gets its own device")
    # Sums over processes keep buffers equal; copying them from process 0 would only hide a difference.
    # Some parameters of the objective may have no gradient: a term with weight 0, a φ that no scale uses.
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
    """Leave the process group at the end of this process; no effect if it is the only process."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def launched_processes() -> int:
    """Number of processes that torchrun or accelerate launch started, from the environment; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Rank of this process, from 0."""
    return int(os.environ.get("RANK", "0"))
