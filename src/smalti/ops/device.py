"""Selects the device, and the number format that its hardware multiplies fastest."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

CPU_BF16_FEATURES = ("avx512_bf16", "amx_bf16")
"""CPU features that multiply bf16 matrices faster than fp32 ones."""


def find_device(name: str) -> torch.device:
    """The device with this name. "auto" is CUDA if available, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return torch.device("cuda" if accelerator is not None and accelerator.type == "cuda" else "cpu")
    there = ["cpu"]
    if accelerator is not None:
        numbered = [f"{accelerator.type}:{k}" for k in range(torch.accelerator.device_count())]
        there += [accelerator.type, *numbered]
    if name not in there:
        raise ValueError(f"device: got {name!r}, expected auto or one of {', '.join(there)}")
    return torch.device(name)


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype with this name. "auto" is bf16 if the hardware supports it."""
    if precision == "auto":
        return torch.bfloat16 if has_bf16(device) else torch.float32
    return DTYPES[precision]


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):  # public in recent versions of torch
        features = torch.cpu.get_capabilities()
        return any(features.get(name, False) for name in CPU_BF16_FEATURES)
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe is not None and probe())


def without_autocast(beside: Tensor) -> AbstractContextManager:
    """Context without autocast on the device of `beside`; the meta device, which only has shapes, has no autocast."""
    device = beside.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
