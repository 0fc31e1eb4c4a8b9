"""Settings in plain JSON types, for config.json: frozen dataclasses and constructor arguments, written and read.

`arguments.py` checks the values against the annotations.
"""

from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import nn

from smalti.formats.arguments import construct

Config = TypeVar("Config")


@runtime_checkable
class Configured(Protocol):
    """An object that returns its own configuration, such as a quantizer."""

    def config(self) -> dict[str, Any]:
        """The configuration in plain JSON types."""


def from_plain(cls: type[Config], config: Mapping[str, Any] | Config) -> Config:
    """The dataclass `cls` from its plain dictionary, whose lists become tuples; a `cls` is returned unchanged.

    Raises:
        ValueError: a key that is no field of `cls`, or a value that the field does not take.
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


def to_plain(value: Any) -> Any:
    """A value in plain JSON types: dataclasses and objects with `config()` as dictionaries, sequences as lists."""
    if isinstance(value, Configured):
        return value.config()
    if is_dataclass(value):
        return {
            entry.name: to_plain(getattr(value, entry.name))
            for entry in fields(value)
            if not ("added_later" in entry.metadata and getattr(value, entry.name) == entry.default)
        }
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple | nn.ModuleList):
        return [to_plain(member) for member in value]
    return value
