"""The command that repeats a measurement. It is printed with the numbers."""

import json
import shlex
from dataclasses import MISSING, fields
from typing import Any

from smalti.formats.recipe import write_list


def reproduce_command(verb: str, config: Any, config_class: type, positionals: tuple[str, ...]) -> str:
    """The call of `smalti VERB` that gives this config; options at their defaults are left out.

    Args:
        verb: the command.
        config: a frozen dataclass.
        config_class: the class whose fields count; `config` may be of a subclass with fields that do not matter.
        positionals: fields that stand without their name, in this order.
    """
    words: list[str] = []
    options: list[str] = []
    for name in positionals:
        value = getattr(config, name)
        words += value if isinstance(value, tuple) else [str(value)]
    for field in fields(config_class):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name not in positionals and value != default:
            options += [f"--{field.name}"] if value is True else [f"--{field.name}", _as_text(value)]
    if any(word.startswith("-") for word in words):  # after two dashes nothing is an option
        return shlex.join(["smalti", verb, *options, "--", *words])
    return shlex.join(["smalti", verb, *words, *options])


def _as_text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return write_list(value)
    return json.dumps(value) if isinstance(value, bool | int | float) else str(value)
