"""Sizes of networks between a frozen dataclass and the plain dictionary of a config.json."""

from collections.abc import Mapping
from dataclasses import asdict, fields
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


def to_plain(config: Any) -> dict[str, Any]:
    """The fields of a dataclass in plain JSON types: tuples as lists."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
