"""Check an installation and a device: does it compute the tokens and pixels of the CPU, and what is installed."""

import platform
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import torch
from torch import Tensor

from smalti.blocks import HEDVGG16, VGG16, AlexNet, EfficientNetLite0, FIDInception
from smalti.data import open_images
from smalti.data.source import MissingPackageError
from smalti.evaluation.device_check import DeviceCheck, check_device
from smalti.formats import WeightsFile, find_weights
from smalti.losses.perceptual import HEADS
from smalti.ops import native
from smalti.ops.device import find_device
from smalti.ops.nearest import backend_faults
from smalti.zoo import BOXED, filled, open_tokenizer

SIDE = 128
"""Side of the picture in pixels."""
PICTURE = "embedded:test"
"""The picture is the middle of the first photograph."""
PACKAGES = ("torch", "pillow", "numpy")
"""Packages whose versions are reported."""

WEIGHTS: dict[str, WeightsFile] = {
    "LPIPS, VGG16": HEADS[VGG16],
    "LPIPS, AlexNet": HEADS[AlexNet],
    **{each.name: each.weights for each in (VGG16, AlexNet, HEDVGG16, EfficientNetLite0, FIDInception)},
}
"""Pretrained networks of losses and metrics, by the name that stands beside a number."""


@dataclass(frozen=True)
class DoctorConfig:
    """Check that a device computes the same tokens and pixels as the CPU, and list what is installed."""

    device: str = "auto"
    """Device to check: "cpu", "cuda", "mps", ...; "auto": the accelerator of this machine, else the CPU."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found."""

    smalti: str
    """Version of smalti."""
    versions: Mapping[str, str]
    """Versions of Python and of the packages that results depend on."""
    device: str
    """The device that was checked."""
    device_name: str
    """Name of its hardware."""
    picture: str
    """The picture that was encoded and decoded."""
    kernel: str
    """Native kernel of the code search on this processor; "" if there is none."""
    backends: Mapping[str, str]
    """Back end of the code search → why it cannot be used; "" if it passed its check."""
    weights: Mapping[str, str]
    """Tokenizer or pretrained network → where its weights are; "" if they were not found."""
    extras: Mapping[str, tuple[str, ...]]
    """Extra of the package → its packages that are not installed."""
    checks: tuple[DeviceCheck, ...]
    """One for each device, tokenizer and number format."""

    @property
    def faults(self) -> list[DeviceCheck]:
        """The checks in fp32 that found something wrong."""
        return [check for check in self.checks if check.fault and check.number_format == "fp32"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"version": 1, **asdict(self), "healthy": not self.faults}


def doctor(config: DoctorConfig) -> Diagnosis:
    """Check the device and the CPU with each tokenizer of the box.

    Raises:
        ValueError: the device is not available.
    """
    device = _device(config.device)
    picture, name = _picture()
    devices = [torch.device("cpu"), *([device] if device.type != "cpu" else [])]
    boxed = [model for model in BOXED if filled(model)]
    with warnings.catch_warnings():  # the report says what is missing
        warnings.simplefilter("ignore", RuntimeWarning)
        backends = backend_faults(device)
        checks = [check for model in boxed for check in check_device(model, open_tokenizer(model), picture, devices)]
    return Diagnosis(
        smalti=version("smalti"),
        versions={"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        picture=name,
        kernel=native.kernel(),
        backends=backends,
        weights={**{model: "in the package" if model in boxed else "" for model in BOXED}, **dict(_networks())},
        extras=_extras(),
        checks=tuple(checks),
    )


def _device(name: str) -> torch.device:
    """The device with this name. Unlike other commands, "auto" takes any accelerator."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return find_device(accelerator.type if name == "auto" and accelerator is not None else name)


def _picture() -> tuple[Tensor, str]:
    """A picture (1, 3, SIDE, SIDE), uint8, and its name: a photograph, or waves where none is installed."""
    try:
        source = open_images(PICTURE)
    except MissingPackageError:
        x, y = torch.meshgrid(torch.arange(SIDE) / SIDE, torch.arange(SIDE) / SIDE, indexing="xy")
        waves = torch.stack([torch.sin(20 * x * x + 3 * y), torch.sin(9 * y * y - 5 * x), torch.sin(30 * x * y)])
        return ((waves + 1) * 127.5).round().to(torch.uint8)[None], "waves"
    pixels = torch.tensor(source.load(0)).permute(2, 0, 1)
    top, left = ((side - SIDE) // 2 for side in pixels.shape[1:])
    return pixels[None, :, top : top + SIDE, left : left + SIDE].contiguous(), source.key(0)


def _networks() -> Iterator[tuple[str, str]]:
    """Each pretrained network, and where its weights are."""
    for name, file in WEIGHTS.items():
        try:
            yield name, str(find_weights(file))
        except FileNotFoundError:
            yield name, ""


def _extras() -> dict[str, tuple[str, ...]]:
    """Each extra of the package, with its packages that are not installed."""
    missing: dict[str, list[str]] = {}
    for line in requires("smalti") or []:
        package, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if package and extra and package[0] != "smalti":
            missing.setdefault(extra[1], []).extend([] if _installed(package[0]) else [package[0]])
    return {extra: tuple(packages) for extra, packages in missing.items()}


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
