"""torch-fidelity, the oracle of Fréchet and kernel distance, where it is installed.

It imports torchvision for data sets and networks that nothing here uses; this project does without torchvision, so an
empty stand-in takes its place while torch-fidelity is imported.
"""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest

STAND_INS = {
    "torchvision": [],
    "torchvision.datasets": ["CIFAR10", "STL10", "CIFAR100"],
    "torchvision.transforms": [],
    "torchvision.transforms.functional": [],
}


def torch_fidelity() -> ModuleType:
    """The package, or the test is skipped."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed: make setup, or pip install --no-deps torch-fidelity")
    needed = "torch_fidelity" not in sys.modules and importlib.util.find_spec("torchvision") is None
    stand_ins = {name: _stand_in(name, has) for name, has in STAND_INS.items()} if needed else {}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("torch_fidelity")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _stand_in(name: str, has: list[str]) -> ModuleType:
    module = ModuleType(name)
    for each in has:
        setattr(module, each, type(each, (), {}))
    return module
