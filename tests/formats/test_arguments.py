"""Plain values against the types that a constructor states."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from smalti.formats.arguments import check_arguments, construct, type_name


class Part:
    """Stands for a quantizer or the like."""


class Whole:
    """Takes one argument of every kind."""

    def __init__(
        self,
        size: int = 1,
        *,
        ratio: float = 0.5,
        name: str = "a",
        flag: bool = False,
        sides: Sequence[int] | None = None,
        pair: tuple[float, float] = (0.0, 1.0),
        many: tuple[int, ...] = (),
        kind: Literal["one", "two"] = "one",
        part: Part | None = None,
        source: Mapping[str, Any] | None = None,
    ):
        self.size = size
        if size > 10:
            raise RuntimeError("not that\nlarge")


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 3, "ratio": 2, "name": "", "flag": True, "kind": "two", "unknown": object()},
        {"size": -(2**63) + 1, "sides": [1, 2], "pair": [0, 1.5], "many": []},
        {"sides": None, "part": None, "source": None},
        {"sides": (1,), "part": {"type": "Part"}, "source": {"a": 1}},
        {"part": Part()},
    ],
)
def test_values_of_the_stated_types_pass(arguments):
    check_arguments(Whole, arguments)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("size", 1000.0, "a whole number"),
        ("size", True, "a whole number"),
        ("size", None, "a whole number"),
        ("size", 2**63, "a whole number"),
        ("size", "abc", "a whole number"),
        ("ratio", math.nan, "a number"),
        ("ratio", math.inf, "a number"),
        ("ratio", False, "a number"),
        ("ratio", [1.0], "a number"),
        ("name", 3, "text"),
        ("flag", 1, "true or false"),
        ("sides", 16, "null or a list of: a whole number"),
        ("sides", "16", "null or a list of: a whole number"),
        ("sides", [1, 2.0], "null or a list of: a whole number"),
        ("pair", [1.0], "[a number, a number]"),
        ("many", [None], "a list of: a whole number"),
        ("kind", "three", "one of one, two"),
        ("part", 3, "the table of a Part or null"),
        ("source", [], "a table or null"),
    ],
)
def test_every_other_value_is_refused_by_name(name, value, expected):
    with pytest.raises(ValueError, match=rf"^{name}: got ") as caught:
        check_arguments(Whole, {name: value})
    assert str(caught.value) == f"{name}: got {value!r}, expected {expected}"


@pytest.mark.parametrize("arguments", [{"size": 11}, {"unknown": 1}, [1], None])
def test_what_a_constructor_refuses_is_one_line(arguments):
    with pytest.raises(ValueError, match=r"^Whole( cannot be built from|: got)") as caught:
        construct(Whole, arguments)
    assert "\n" not in str(caught.value)


def test_type_names_do_not_repeat_themselves():
    assert type_name(Literal["auto"] | bool) == "auto or true or false"
    assert type_name(Sequence[int] | tuple[int, ...]) == "a list of: a whole number"
    assert type_name(tuple[Literal["jpeg", "webp"], ...]) == "a list of: one of jpeg, webp"
    assert type_name(list[int | None] | int | None) == "a whole number or null or a list of: a whole number or null"
    assert type_name(tuple[int, str]) == "[a whole number, text]"
