"""Checks the values that a constructor receives: from a program, a config.json, a recipe or the command line.

The constructor's annotations state the types. The check runs before the call: a wrong value is reported by name instead
of failing inside the constructor, and an impossible size is refused before memory is allocated.
"""

import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar

Built = TypeVar("Built")
Parameters = ParamSpec("Parameters")

TYPE_NAMES = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path", NoneType: "null",
}  # fmt: skip
LARGEST = 2**63 - 1
"""The largest integer that torch accepts."""


def checked(function: Callable[Parameters, Built]) -> Callable[Parameters, Built]:
    """Decorator of an `__init__` or a function: check the types of its arguments; objects must be built."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Built:
        check_arguments(function, signature.bind(*args, **kwargs).arguments, tables=False)
        return function(*args, **kwargs)

    return call


def check_arguments(constructor: Callable[..., Any], arguments: Mapping[str, Any], *, tables: bool = True) -> None:
    """Refuse a value whose type differs from the constructor's annotation.

    Args:
        constructor: a class or function. Arguments that it does not name are not checked.
        arguments: values by name.
        tables: whether an object such as a quantizer may be given as the table that describes it.

    Raises:
        ValueError: wrong type, a number that is not finite, or an integer of more than 64 bits.
    """
    called = constructor.__init__ if isinstance(constructor, type) else constructor  # type: ignore[misc]
    hints = typing.get_type_hints(called)
    for name, value in arguments.items():
        if name in hints and not _fits(value, hints[name], tables):
            raise ValueError(f"{name}: got {value!r}, expected {type_name(hints[name], tables)}")


def construct(constructor: Callable[..., Built], arguments: Any) -> Built:
    """Check the arguments and call the constructor. Any error of the constructor becomes a `ValueError`.

    Raises:
        ValueError: values of a wrong type, values that exclude each other, or sizes too large for memory.
    """
    name = constructor.__name__
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{name}: got {arguments!r}, expected a table of its arguments")
    check_arguments(constructor, arguments)
    try:
        return constructor(**arguments)
    except (TypeError, ArithmeticError, RuntimeError, MemoryError) as error:  # torch: sizes that it cannot allocate
        raise ValueError(f"{name} cannot be built from {', '.join(arguments)}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """First line of an error message; torch appends its C++ stack trace."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def type_name(hint: Any, tables: bool = True) -> str:
    """A type in words: the values of a Literal, 'text' for str, 'A or B' for a union."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(str(value) for value in inner)
    if origin in (UnionType, typing.Union):
        names = dict.fromkeys(type_name(member, tables) for member in inner)
        return " or ".join(
            sorted(names, key=lambda name: name.startswith("a list of: "))
        )  # what follows is of the list
    if origin in (tuple, list, Sequence):
        if origin is tuple and Ellipsis not in inner:
            return f"[{', '.join(type_name(member, tables) for member in inner)}]"
        return f"a list of: {type_name(inner[0], tables)}"
    if origin in (dict, Mapping):
        return "a table" if inner[1] is Any else f"a table with {type_name(inner[1])} for each name"
    return TYPE_NAMES.get(hint) or f"{'the table of ' * tables}a {hint.__name__}"


def _fits(value: Any, hint: Any, tables: bool) -> bool:
    """Whether a plain value is valid for this type. An integer is valid as a float, but not as a bool."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return value in inner
    if origin in (UnionType, typing.Union):
        return any(_fits(value, member, tables) for member in inner)
    if origin in (tuple, list, Sequence):
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        if origin is tuple and Ellipsis not in inner:
            return len(value) == len(inner) and all(_fits(*pair, tables) for pair in zip(value, inner, strict=True))
        return all(_fits(member, inner[0], tables) for member in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if hint is int:
        return type(value) is int and abs(value) <= LARGEST
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) or (tables and hint not in TYPE_NAMES and isinstance(value, Mapping))
