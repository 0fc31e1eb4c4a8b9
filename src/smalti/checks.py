"""Checks of plain values. Every error reads "name: got X, expected Y".

A constructor passes its arguments by name: `at_least(1, num_embeddings=num_embeddings)`. NaN fails every check.
"""

from collections.abc import Sequence


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
