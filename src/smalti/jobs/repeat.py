"""The command that repeats a job: it stands beside the numbers, so that nobody has to remember how they were taken."""

import json
import shlex
from dataclasses import MISSING, fields
from typing import Any


def command_line(verb: str, config: Any, config_class: type, positionals: tuple[str, ...]) -> str:
    """The call of `smalti VERB` that gives this config; options at their defaults are left out.

    Args:
        verb: the command.
        config: a frozen dataclass.
        config_class: the class whose fields count; `config` may be of a subclass with fields that do not matter.
        positionals: fields that stand without their name, in this order.
    """
    words = ["smalti", verb]
    for name in positionals:
        value = getattr(config, name)
        words += value if isinstance(value, tuple) else [str(value)]
    for field in fields(config_class):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name in positionals or value == default:
            continue
        words += [f"--{field.name}"] if value is True else [f"--{field.name}", _as_text(value)]
    return shlex.join(words)


def _as_text(value: Any) -> str:
    """A value as the command line takes it: text as it is, all else as JSON, which YAML reads."""
    return json.dumps(value) if isinstance(value, tuple | bool | int | float) else str(value)
