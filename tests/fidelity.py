"""torch-fidelity, the oracle of Fréchet and kernel distance, from where `make setup` puts what only the tests look at.

It imports torchvision, mostly for data sets and networks that nothing here uses; this project does without torchvision,
so a stand-in takes its place.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import torch

ORACLES = Path(sys.prefix, "oracles")


class Compose:
    """torchvision's: one transform after the other."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


DATA_SETS = {name: type(name, (), {}) for name in ("CIFAR10", "STL10", "CIFAR100")}


def torch_fidelity() -> ModuleType:
    """The package, or the test is skipped."""
    if "torch_fidelity" in sys.modules:
        return sys.modules["torch_fidelity"]
    if not (ORACLES / "torch_fidelity").is_dir():
        pytest.skip(f"no torch-fidelity in {ORACLES}: make setup")
    stand_ins = _torchvision()
    sys.modules.update(stand_ins)
    try:
        with mock.patch.object(sys, "path", [*sys.path, str(ORACLES)]):
            return importlib.import_module("torch_fidelity")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def eigenvalues_of_low_rank(matrix: np.ndarray) -> np.ndarray:
    """The eigenvalues, but for zeros, of a matrix of rank 32 at most; all 2048 of them take LAPACK half a minute."""
    basis, _ = np.linalg.qr(matrix @ np.random.default_rng(0).standard_normal((len(matrix), 32)))
    return np.linalg.eig(basis.T @ matrix @ basis)[0]


def _torchvision() -> dict[str, ModuleType]:
    """As much of torchvision as torch-fidelity touches on the way from a folder to a number."""
    modules = {name: ModuleType(name) for name in ("torchvision", "torchvision.datasets", "torchvision.transforms")}
    functional = modules["torchvision.transforms.functional"] = ModuleType("torchvision.transforms.functional")
    functional.pil_to_tensor = lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    vars(modules["torchvision.datasets"]).update(DATA_SETS)
    vars(modules["torchvision.transforms"]).update(Compose=Compose, functional=functional)
    vars(modules["torchvision"]).update(transforms=modules["torchvision.transforms"])
    return modules
