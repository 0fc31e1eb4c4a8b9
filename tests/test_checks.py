"""Checks of plain values: what is on the border passes, what is beyond it is refused with one phrase, NaN always."""

import pytest

from smalti.checks import above_zero, at_least, below_one, between, expect, one_of

NAN = float("nan")


@pytest.mark.parametrize(
    ("check", "good", "bad", "expected"),
    [
        (lambda **v: at_least(1, **v), (1, 1.5, 2**70), (0, 0.999, -1, NAN), "at least 1"),
        (lambda **v: at_least(0, **v), (0, 0.0), (-1, -1e-9, NAN), "at least 0"),
        (above_zero, (1e-9, 3), (0, -0.0, -1, NAN), "more than 0"),
        (lambda **v: between(0, 1, **v), (0, 0.5, 1), (-0.1, 1.1, NAN), "0 to 1"),
        (below_one, (0, 0.999), (-0.1, 1, NAN), "at least 0 and below 1"),
        (lambda **v: one_of(("a", "b"), **v), ("a", "b"), ("c", ""), "one of a, b"),
    ],
)
def test_borders(check, good, bad, expected) -> None:
    for value in good:
        check(first=value, second=value)
    for value in bad:
        with pytest.raises(ValueError, match=r"^second: ") as caught:
            check(first=good[0], second=value)
        assert str(caught.value) == f"second: got {value!r}, expected {expected}"


def test_any_condition() -> None:
    expect(True, "sides", (1, 2), "growing")
    with pytest.raises(ValueError, match=r"^sides: got \(2, 1\), expected growing$"):
        expect(False, "sides", (2, 1), "growing")
