"""The text of `smalti COMMAND --help`: purpose, examples, the arguments in order, then the options in groups.

The descriptions are the docstrings of the fields of the command's config. `--help` shows the options that the command
lists as common, `--help-all` shows all.
"""

import inspect
import shutil
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any

import jsonargparse

COLUMN = 26
"""Column at which the descriptions begin."""
WIDEST = 100
"""Longest line, on a terminal that is wide enough."""


def usage(prog: str, positionals: Sequence[str]) -> str:
    """The usage line; `positionals` as `spelled` returns them."""
    return " ".join([f"usage: {prog}", *positionals, "[--option value ...]"])


def spelled(positionals: Sequence[str], types: Mapping[str, Any], first_is_optional: bool) -> list[str]:
    """Positional arguments as the help prints them: "[RUN]" is optional, "IMAGES..." may be several words."""
    words = [name.upper() + ("..." if typing.get_origin(types[name]) in (tuple, list) else "") for name in positionals]
    return [f"[{word}]" if first_is_optional and word is words[0] else word for word in words]


def help_page(
    config_class: type,
    parser: jsonargparse.ArgumentParser,
    types: Mapping[str, Any],
    *,
    positionals: Mapping[str, str],
    aliases: Mapping[str, str],
    examples: Sequence[str],
    common: Sequence[str],
) -> str:
    """The help page.

    Args:
        config_class: its docstring says what the command does.
        parser: its actions hold the description, default value and group of every option.
        types: dotted name -> type of every option.
        positionals: field -> its spelling, in order.
        aliases: other spellings -> field.
        examples: example calls, shown first.
        common: the options to show, in this order; empty: all.
    """
    actions = {action.dest: action for group in parser._action_groups for action in group._group_actions}
    what = (inspect.getdoc(config_class) or "").partition("\n\n")[0]
    lines = [usage(parser.prog, list(positionals.values())), "", *textwrap.wrap(what, _width())]
    if examples:
        lines += ["", "examples:", *(f"  {example}" for example in examples)]
    if positionals:
        lines += ["", "arguments:"]
        for name, word in positionals.items():
            lines += _entry(word.strip("[]"), _sentence(actions[name]))
    for number, group in enumerate(parser._action_groups[2:]):
        names = [action.dest for action in group._group_actions if action.dest in types]
        shown = [name for name in common or names if name in names and name not in positionals]
        if shown:
            lines += ["", *textwrap.wrap(f"{group.title if number else 'options'}:", _width())]
            for name in shown:
                lines += _entry(_option(name, types[name], actions[name].default, aliases), _sentence(actions[name]))
    lines += ["", *_end(positionals, everything=not common)]
    return "\n".join(lines) + "\n"


def _end(positionals: Mapping[str, str], everything: bool) -> Iterator[str]:
    """The options that every command has."""
    yield from _entry("--config FILE.yaml", "Recipe: a YAML file that may set any of these options.")
    if not everything:
        yield from _entry("--help-all", "Print all options.")
        return
    yield from _entry("--print_config", "Print the complete configuration as a recipe and exit.")
    yield from _entry("--help", "Print the common options.")
    if positionals:
        names = ", ".join(f"--{name}" for name in positionals)
        yield from ("", *textwrap.wrap(f"Arguments may also be given as options: {names}.", _width()))


def _entry(left: str, sentence: str) -> list[str]:
    """An argument or option and its description, which begins on a new line if the left side is too long."""
    indent = " " * COLUMN
    text = textwrap.wrap(sentence, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    head = f"  {left}"
    if len(head) + 2 > COLUMN or not text:
        return [head, *text]
    return [head.ljust(COLUMN) + text[0][COLUMN:], *text[1:]]


def _width() -> int:
    return min(WIDEST, shutil.get_terminal_size().columns)


def _option(name: str, hint: Any, default: Any, aliases: Mapping[str, str]) -> str:
    """ "-o, --out OUT", "--coding {packed,adaptive}"; a flag that is off by default takes no value."""
    names = [*(short for short, field in aliases.items() if field == name), f"--{name}"]
    choices = list(_choices(hint))
    value = name.rpartition(".")[2].upper() if None in choices else f"{{{','.join(map(str, choices))}}}"
    return ", ".join(names) + ("" if hint is bool and default is False else f" {value}")


def _choices(hint: Any) -> Iterator[str | None]:
    """The values that a type allows; None stands for values that cannot be listed."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        yield from map(str, inner)
    elif origin in (UnionType, typing.Union):
        for member in inner:
            yield from _choices(member)
    elif hint is bool:
        yield from ("true", "false")
    elif hint is NoneType:
        yield "null"
    else:
        yield None


def _sentence(action: Any) -> str:
    """The description of the field, with its default value unless that is empty or off."""
    text, default = " ".join((action.help or "").split()), action.default
    if default is not None and default is not False and default not in ("", (), [], {}):
        return f"{text} (default: {_plain(default)})"
    return f"{text} (required)" if action.required else text


def _plain(value: Any) -> str:
    """A default value as a user would type it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        items = ", ".join(map(_plain, value))
        return items if len(value) == 1 and isinstance(value[0], str) else f"[{items}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
