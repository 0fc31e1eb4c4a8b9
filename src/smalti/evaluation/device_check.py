"""Compares tokens and pixels of one picture between a device and the CPU, in every number format.

Some devices return wrong values without an error: a kernel has a bug, or an operation silently loses precision. The
reference is the CPU in fp32, with torch's plain kernels instead of oneDNN's. Encoding and decoding are compared
separately: the device encodes the picture, then it decodes the tokens of the reference, so that a different token
cannot hide a wrong pixel.

Rounding may legitimately move a vector over the border between two codes. Such a token is a close call: the vector of
the reference lies near the border to the code that the device chose.
在各种数值格式下比较设备与 CPU 的词元和像素。某些设备会不报错地给出错误的值。参照是 CPU 上的 fp32，用 torch 的普通内核
而不用 oneDNN。编码与解码分别比较：设备先编码图像，再解码参照的词元。舍入可能使向量越过两个码字的边界，
这样的词元算作接近边界。

Legend: B images, C channels, H x W pixels or latent, h x w one scale, N vectors, D components.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from smalti.ops import to_grid
from smalti.ops.pixels import to_float, to_uint8
from smalti.quantizers import MultiScaleQuantizer, PointwiseQuantizer
from smalti.quantizers.latents import from_vectors, to_vectors
from smalti.tokenizers import Tokenizer, Tokens

Result = TypeVar("Result")


@dataclass(frozen=True)
class NumberFormat:
    """A number format, with the permitted differences from fp32 on the CPU."""

    name: str
    """Its name in the report."""
    dtype: torch.dtype
    """Dtype of the networks (autocast); quantizers compute in fp32."""
    products: str
    """Precision of fp32 products on CUDA: "ieee" or "tf32"."""
    close: float
    """Largest distance to the border of a close call, relative to the mean length of the latent vectors."""
    levels: int
    """Largest difference of a pixel in grey levels."""


FORMATS = (
    NumberFormat("fp32", torch.float32, "ieee", close=1e-3, levels=2),
    NumberFormat("tf32", torch.float32, "tf32", close=0.02, levels=8),
    NumberFormat("bf16", torch.bfloat16, "ieee", close=0.1, levels=16),
    NumberFormat("fp16", torch.float16, "ieee", close=0.02, levels=8),
)


@dataclass(frozen=True)
class DeviceCheck:
    """One tokenizer in one number format on one device, compared with the reference."""

    device: str
    """Type of the device."""
    tokenizer: str
    """Name of the tokenizer."""
    number_format: str
    """Name of the number format."""
    tokens: int
    """Tokens of the picture."""
    different_tokens: int = 0
    """Tokens that differ."""
    close_calls: int = 0
    """Different tokens that rounding explains, or that follow from such a token of a coarser scale."""
    values: int = 0
    """Values of the picture: pixels times channels."""
    different_values: int = 0
    """Values that differ after decoding the same tokens."""
    largest_difference: int = 0
    """Largest difference of a value, in grey levels (0 to 255)."""
    encode_seconds: float = 0.0
    """Time of encoding, after a first run."""
    decode_seconds: float = 0.0
    """Time of decoding, after a first run."""
    fault: str = ""
    """Description of the errors; "" without errors."""


@dataclass(frozen=True)
class Reference:
    """Result of the CPU in fp32, with torch's plain kernels."""

    quantizer: PointwiseQuantizer | MultiScaleQuantizer
    """The quantizer, on the CPU."""
    latent: Float[Tensor, "b c h w"]
    """Output of the encoder, projected to the space of the codes."""
    tokens: Tokens
    """Tokens of the picture."""
    picture: UInt8[Tensor, "b colours H W"]
    """Decoded picture."""

    @classmethod
    @torch.no_grad()
    def of(cls, tokenizer: Tokenizer, picture: UInt8[Tensor, "b colours H W"]) -> "Reference":
        """Encode and decode a picture on the CPU; its sides are multiples of the stride."""
        quantizer = deepcopy(tokenizer.quantizer)
        assert isinstance(quantizer, PointwiseQuantizer | MultiScaleQuantizer)
        with _without_onednn():  # a second implementation, so the CPU is checked, too
            z = tokenizer.encoder(to_float(picture))
            tokens = tokenizer.encode(picture)
            decoded = tokenizer.decode(tokens)
        projected_ND = _part(quantizer, 0).project(to_vectors(z))
        return cls(quantizer, from_vectors(projected_ND, (z.shape[0], *z.shape[2:])), tokens, decoded)

    @torch.no_grad()
    def beyond_border(self, tokens: Tokens) -> Float[Tensor, "b l"]:
        """Distance of the latent from the region of each token's code: 0 if this code is the nearest.

        Distances (B, L) are relative to the mean length of the latent vectors. At each scale, the coarser tokens are
        taken as given, so a token that follows correctly from a different coarser token has distance 0.
        """
        pyramid = isinstance(self.quantizer, MultiScaleQuantizer)
        f_hats = self.quantizer.decode_progressive(tokens.indices if pyramid else tokens.indices[0])
        f_hat_BCHW, distances = torch.zeros_like(self.latent), []
        for k, (indices, after_BCHW) in enumerate(zip(tokens.indices, f_hats, strict=True)):
            part = _part(self.quantizer, k)
            height, width = indices.shape[1:]
            u_ND = to_vectors(to_grid(self.latent - f_hat_BCHW, (height, width)))
            chosen_ND, nearest_ND = part.lookup(indices.flatten()), part.lookup(part.search(u_ND))
            gap_N = (u_ND - chosen_ND).square().sum(dim=1) - (u_ND - nearest_ND).square().sum(dim=1)
            distance_N = gap_N / (2 * (chosen_ND - nearest_ND).norm(dim=1)).clamp_min(1e-12)
            distances.append(distance_N.reshape(len(tokens), -1))
            f_hat_BCHW = after_BCHW
        return torch.cat(distances, dim=1) / self.latent.norm(dim=1).mean()


def check_device(
    name: str, tokenizer: Tokenizer, picture: UInt8[Tensor, "b colours H W"], devices: Sequence[torch.device]
) -> Iterator[DeviceCheck]:
    """Compare a tokenizer on some devices with the reference, in each number format.

    Args:
        name: name of the tokenizer.
        tokenizer: in eval mode, on the CPU; it is on the last device afterwards.
        picture: (B, C, H, W), sides that are multiples of the stride.
        devices: the devices to check.
    """
    reference = Reference.of(tokenizer, picture)
    for device in devices:
        tokenizer.to(device)
        for each in FORMATS:
            if each.name != "tf32" or device.type == "cuda":
                blank = DeviceCheck(device.type, name, each.name, reference.tokens.num_tokens * len(picture))
                try:
                    with _computing(device, each):
                        check = _compared(blank, each, tokenizer, picture.to(device), reference)
                except (RuntimeError, ValueError, TypeError) as error:  # an operation that the device does not support
                    check = replace(blank, fault=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
                yield check


@contextmanager
def _without_onednn() -> Iterator[None]:
    """The context in which torch computes on the CPU with its own kernels."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


@contextmanager
def _computing(device: torch.device, number_format: NumberFormat) -> Iterator[None]:
    """The context in which networks compute in this number format."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = number_format.products
    try:
        with torch.autocast(device.type, number_format.dtype, enabled=number_format.dtype != torch.float32):
            yield
    finally:
        for each, precision in zip(settings, before, strict=True):
            each.fp32_precision = precision


def _compared(
    blank: DeviceCheck, number_format: NumberFormat, tokenizer: Tokenizer, picture: Tensor, reference: Reference
) -> DeviceCheck:
    """Encode the picture and decode the reference's tokens on the device; compare both."""
    given = replace(reference.tokens.to(picture.device), image_dtype=torch.float32)  # in uint8, NaN would be black
    encoded, encode_seconds = _timed(lambda: tokenizer.encode(picture), picture.device)
    decoded, decode_seconds = _timed(lambda: tokenizer.decode(given), picture.device)
    tokens, decoded = encoded.to("cpu"), decoded.cpu()
    sequence, expected = tokens.flatten(), reference.tokens.flatten()
    valid = bool(((sequence >= 0) & (sequence < tokens.vocab_size)).all())
    differs, close_calls = sequence != expected, 0
    if valid:
        close_calls = int((differs & (reference.beyond_border(tokens) <= number_format.close)).sum())
    difference = (to_uint8(decoded).int() - reference.picture.int()).abs()
    check = replace(
        blank,
        different_tokens=int(differs.sum()),
        close_calls=close_calls,
        values=difference.numel(),
        different_values=int((difference > 0).sum()),
        largest_difference=int(difference.max()),
        encode_seconds=encode_seconds,
        decode_seconds=decode_seconds,
    )
    return replace(check, fault="; ".join(_faults(check, number_format, valid, bool(decoded.isfinite().all()))))


def _faults(check: DeviceCheck, number_format: NumberFormat, valid: bool, finite: bool) -> Iterator[str]:
    """Descriptions of the errors."""
    wrong = check.different_tokens - check.close_calls
    if not valid:
        yield "encoding gives NaN or invalid tokens"
    elif wrong:
        yield f"{wrong} of {check.tokens} tokens are wrong"
    if not finite:
        yield "decoding gives NaN"
    elif check.largest_difference > number_format.levels:
        tokens = "" if wrong or not valid else "the tokens are right, but "
        most = f"expected at most {number_format.levels}"
        yield f"{tokens}decoded pixels are wrong, by up to {check.largest_difference} of 255 grey levels, {most}"


def _timed(call: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """The result of a call, and the time of a second call in seconds."""
    result = call()
    _wait_for(device)
    start = time.perf_counter()
    call()
    _wait_for(device)
    return result, time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _part(quantizer: PointwiseQuantizer | MultiScaleQuantizer, k: int) -> PointwiseQuantizer:
    """The quantizer of scale k."""
    return quantizer.part(k) if isinstance(quantizer, MultiScaleQuantizer) else quantizer
