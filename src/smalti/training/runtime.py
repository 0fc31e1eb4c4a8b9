"""Where and how a training step runs: device, number format, memory layout, compilation.

The loop knows none of this; it calls the five methods of `Runtime`. This one is a single process on one device. A run
over several processes needs another class with the same methods (Hugging Face's `Accelerator` has their counterparts:
`prepare`, `autocast`, `backward`, `clip_grad_norm_`) and no other loop.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.tokenizers import Tokenizer, TokenizerOutput

Precision = Literal["auto", "fp32", "bf16"]

CPU_BF16_FEATURES = ("avx512_bf16", "amx_bf16")
"""CPU features that multiply bf16 matrices faster than fp32 ones."""


@dataclass(frozen=True)
class Runtime:
    """One process on one device."""

    device: torch.device
    """Where model and images are."""
    bf16: bool
    """Whether forward passes run under bf16 autocast; weights, losses and quantizers stay in fp32."""
    channels_last: bool
    """Whether images and convolution kernels lie in memory as NHWC."""
    compile: bool
    """Whether encoder and decoder run through torch.compile."""

    def prepare(self, model: Tokenizer) -> Callable[[Tensor], TokenizerOutput]:
        """Move a model to its device and layout, in place, and return what to call in its stead.

        The quantizer is never compiled: it decides by values (is a code dead?) and draws random numbers, and its
        searches are a few large kernels already.
        """
        model.to(self.device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile:
            model.encoder.compile()
            model.decoder.compile()
        return model

    def place(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images (B, C, H, W) on the device, in the layout of the model."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return image.to(self.device, non_blocking=True).contiguous(memory_format=layout)

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Gradients of a loss; bf16 has the range of fp32, so nothing needs scaling."""
        loss.backward()

    def clip_gradients(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Float[Tensor, ""]:
        """Shorten the gradient of all parameters together to `max_norm` and return the norm that it had."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)


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
        bf16=has_bf16(chosen) if precision == "auto" else precision == "bf16",
        channels_last=True if channels_last == "auto" else channels_last,
        compile=compile,
    )


def find_device(name: str) -> torch.device:
    """The device of that name, "auto" for CUDA if there is one and the CPU otherwise."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return torch.device("cuda" if accelerator is not None and accelerator.type == "cuda" else "cpu")
    there = ["cpu"]
    if accelerator is not None:
        numbered = [f"{accelerator.type}:{k}" for k in range(torch.accelerator.device_count())]
        there += [accelerator.type, *numbered]
    if name not in there:
        raise ValueError(f"device: got {name!r}, expected auto or what this machine has: {', '.join(there)}")
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware of a device multiplies bf16 matrices itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):  # public in recent versions of torch
        features = torch.cpu.get_capabilities()
        return any(features.get(name, False) for name in CPU_BF16_FEATURES)
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe is not None and probe())
