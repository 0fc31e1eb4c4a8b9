"""Checks that need neither torch nor numpy: of plain values, and of the directory of a new run.

Every error about a value reads "name: got X, expected Y". A constructor passes its arguments by name:
`at_least(1, num_embeddings=num_embeddings)`. NaN fails every check.
"""

from collections.abc import Sequence
from pathlib import Path

RUN_SETTINGS = "train.yaml"
"""The file by which a run directory is recognised: the settings of the run."""


def expect(right: bool, name: str, value: object, expected: str) -> None:
    """Raise `ValueError("name: got value, expected …")` unless `right` is true."""
    if not right:
        raise ValueError(f"{name}: got {value!r}, expected {expected}")


def is_a(kind: type, **values: object) -> None:
    """Refuse objects of another type."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name}: got a {type(value).__name__}, expected a {kind.__name__}")


def at_least(least: int, **values: float) -> None:
    """Refuse values below `least`."""
    for name, value in values.items():
        expect(value >= least, name, value, f"at least {least}")


def above_zero(**values: float) -> None:
    """Refuse values that are not above 0."""
    for name, value in values.items():
        expect(value > 0, name, value, "more than 0")


def between(low: float, high: float, **values: float) -> None:
    """Refuse values outside [low, high]."""
    for name, value in values.items():
        expect(low <= value <= high, name, value, f"{low} to {high}")


def below_one(**values: float) -> None:
    """Refuse values outside [0, 1)."""
    for name, value in values.items():
        expect(0 <= value < 1, name, value, "at least 0 and below 1")


def one_of(allowed: Sequence[str], **values: str) -> None:
    """Refuse values that are not among the allowed ones."""
    for name, value in values.items():
        expect(value in allowed, name, value, f"one of {', '.join(allowed)}")


def check_new_run(path: Path, *, force: bool) -> None:
    """Refuse a path for a new run that exists, unless it is empty, or is a run directory and `force` is set.

    Raises:
        FileExistsError: the path exists and `force` is off, or the path is not a run directory.
    """
    if not path.exists():
        return
    if path.is_dir() and all(inner.name.startswith(".") for inner in path.iterdir()):
        return
    if not (path / RUN_SETTINGS).is_file():
        raise FileExistsError(f"out: {path} exists and is not a run directory; choose another name")
    if not force:
        raise FileExistsError(f"out: {path} holds a run; continue it with resume=True or replace it with force=True")
