"""Sizes of networks between a frozen dataclass and the plain dictionary of a config.json."""

from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any, TypeVar

from smalti.formats.arguments import construct

Config = TypeVar("Config")


def from_plain(cls: type[Config], config: Mapping[str, Any] | Config) -> Config:
    """The dataclass `cls` from its plain dictionary, whose lists become tuples; a `cls` is returned as it is.

    Raises:
        ValueError: a key that is no field of `cls`, a value that the field does not take.
    """
    if isinstance(config, cls):
        return config
    assert isinstance(config, Mapping)
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in config:
        if key not in known:
            raise ValueError(f"{key}: unknown, expected one of {', '.join(known)}")
    return construct(cls, {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()})


def added_later(default: Any) -> Any:
    """A field that older models lack: `to_plain` leaves it out at its default, so that their fingerprints stay."""
    return field(default=default, metadata={"added_later": True})


def to_plain(config: Any) -> dict[str, Any]:
    """The fields of a dataclass in plain JSON types: tuples as lists."""
    values = {entry: getattr(config, entry.name) for entry in fields(config)}
    return {
        entry.name: to_plain(value) if is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for entry, value in values.items()
        if not ("added_later" in entry.metadata and value == entry.default)
    }
