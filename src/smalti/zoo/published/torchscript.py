"""Reads the tensors of a TorchScript archive (.jit) without loading or running the code in it.

The file is a zip archive: `data.pkl` describes the module and its attributes, `data/` holds the numbers, `code/` the
programs. The unpickler here reads only the first two and knows only tensors, containers and empty objects; everything
else is refused. `torch.jit.load` would run the programs in `code/`.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DEPTH = 30
"""Largest nesting depth of modules."""

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Names of storage types, and their dtypes."""


DAMAGE = (
    zipfile.BadZipFile, RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError, OSError,
    OverflowError, StopIteration,
)  # fmt: skip
"""Exceptions that a damaged archive may cause."""


class Attributes:
    """Stands for a module of the archive: its attributes, without its code."""


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive, by its content."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(file: Path) -> dict[str, Tensor]:
    """Parameters and buffers by name.

    Raises:
        ValueError: a damaged archive, or one that contains more than tensors and plain data.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return dict(_named(_Reader(archive).load(), "", DEPTH))
    except pickle.UnpicklingError as error:
        raise ValueError(f"checkpoint: {file} was refused: {error}") from error
    except DAMAGE as error:
        raise ValueError(f"checkpoint: {file} is not a readable TorchScript archive ({error})") from error


class _Reader(pickle.Unpickler):
    """Unpickler for data.pkl that knows only tensors and containers."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        self.root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        super().__init__(io.BytesIO(self.stored("data.pkl")))

    def stored(self, name: str) -> bytes:
        """A file in the archive. Refuses compressed ones: PyTorch writes none, and they can expand a thousandfold."""
        member = self.archive.getinfo(self.root + name)
        if member.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError(f"{member.filename} is compressed, expected an uncompressed file")
        return self.archive.read(member)

    def find_class(self, module: str, name: str) -> Any:
        """The object for a name in the pickle."""
        if module.split(".")[0] == "__torch__":
            return type("Attributes", (Attributes,), {})
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch.jit._pickle":  # lists and dictionaries with the types of their elements
            return _untyped
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it contains {module}.{name}, expected only tensors and plain data")

    def persistent_load(self, identity: Any) -> Tensor:
        """The numbers of a storage."""
        _, dtype, key, *_ = identity
        numbers = bytearray(self.stored(f"data/{key}"))
        return torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)


def _untyped(value: Any, *_: Any) -> Any:
    """The list or dictionary without its type."""
    return value


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of a storage; torch refuses a view beyond its end."""
    return storage.as_strided(size, stride, offset)


def _named(module: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Attributes) and depth > 0:
            yield from _named(value, f"{prefix}{name}.", depth - 1)
