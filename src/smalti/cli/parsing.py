"""Parses a command line into a frozen dataclass; every mistake becomes a message of one line.

jsonargparse does the work: the fields of the dataclass are the options, their docstrings are the help, and a YAML
recipe may set any of them. This module adds positional arguments, flags without a value (`--force`), options that
override the recipe at any position, and short messages that suggest the nearest name.
"""

import dataclasses
import math
import re
import typing
from argparse import ArgumentError
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import jsonargparse

from smalti.cli import nearest
from smalti.cli.first_word import begins_with_tokenizer
from smalti.cli.help import help_page, spelled
from smalti.formats.arguments import LARGEST, type_name
from smalti.formats.recipe import read_recipe, write_list, write_recipe

Config = TypeVar("Config")

PRINT_CONFIG = "print_config"
"""Flag that prints the complete configuration as a recipe."""
HELP_ALL = "--help-all"
"""Flag that prints all options; `--help` prints the common ones."""


def parse_config(
    config_class: type[Config],
    arguments: list[str],
    *,
    prog: str,
    positionals: tuple[str, ...] = (),
    aliases: Mapping[str, str] | None = None,
    tokenizer: str = "",
    defaults: Callable[[Mapping[str, str]], Mapping[str, Any]] | None = None,
    examples: tuple[str, ...] = (),
    common: tuple[str, ...] = (),
) -> Config:
    """Build a config from the arguments after a verb.

    Args:
        config_class: a frozen dataclass; nested ones become dotted options (`--optimization.lr`), fields of type bool
            become flags, and a field of type dict also takes `--name.key value`.
        arguments: the words after the verb.
        prog: name of the command, for the usage line: "smalti train".
        positionals: fields that may be given without their name, in this order. One of them may be a tuple or a list
            (`tuple[str, ...]`): it takes the words that the others leave.
        aliases: short options and the fields they mean: {"-o": "out"}.
        tokenizer: value of the first positional if no word names a tokenizer, see `first_word.py`; "": the first
            positional is not optional.
        defaults: a function that takes the text options (those of recipes too) and returns default values by dotted
            name; they replace the config's own.
        examples: calls of the command that `--help` shows.
        common: options that `--help` shows; empty: all, as `--help-all` does.

    Returns:
        The config, validated by its own `__post_init__`.

    Raises:
        ValueError: an unknown option, a bad value or a missing argument; the message is one line.
        SystemExit: with code 0, after `--help`, `--help-all` or `--print_config`.
    """
    types = option_types(config_class)
    aliases = {} if aliases is None else aliases
    parser = _parser(config_class, prog)
    options, words, wants_help = _split(arguments, types, aliases)
    parser.set_defaults(
        _no_word_for(tokenizer, types, positionals) | dict(defaults(_texts(options)) if defaults else {})
    )
    if wants_help:
        words_of = dict(zip(positionals, spelled(positionals, types, bool(tokenizer)), strict=True))
        shown = () if wants_help == HELP_ALL else common
        page = help_page(
            config_class, parser, types, positionals=words_of, aliases=aliases, examples=examples, common=shown
        )
        print(page, end="")
        raise SystemExit(0)
    given = _name_positionals(words, types, _expected(words, options, types, positionals, bool(tokenizer)))
    return _build(config_class, _parsed(parser, given, options, types, positionals), "")


def option_types(config_class: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every option of a config, including nested configs."""
    hints = typing.get_type_hints(config_class)
    types: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            types |= option_types(hint, f"{prefix}{field.name}.")
        else:
            types[prefix + field.name] = hint
    return types


def _parser(config_class: type, prog: str) -> jsonargparse.ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    jsonargparse.set_dumper("yaml", write_recipe)  # of --print_config
    parser = jsonargparse.ArgumentParser(prog=prog, exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(config_class, None)
    return parser


def _parsed(
    parser: jsonargparse.ArgumentParser,
    given: dict[str, str | list[str]],
    options: list[str],
    types: dict[str, Any],
    positionals: tuple[str, ...],
) -> dict[str, Any]:
    """Values by field, from the words given for positionals and from the options; nested configs are tables."""
    named = [f"--{name}={value if isinstance(value, str) else _as_yaml(value)}" for name, value in given.items()]
    typed = _recipes(options) + named + [option for option in options if not option.startswith("--config=")]
    try:  # recipes first: the command line overrides them, wherever --config stands
        values = parser.parse_args(
            [_clean(option) if _is_path(option, types) else option for option in typed]
        ).as_dict()
    except ArgumentError as error:
        raise ValueError(_shorten(str(error.message), types, positionals)) from error
    except RecursionError as error:
        raise ValueError("options: nested too deeply") from error
    for name, value in given.items():  # lists of words exactly as typed: YAML may change unusual characters
        if isinstance(value, list) and typing.get_args(types[name])[0] is str:
            values[name] = typing.get_origin(types[name])(value)
    for option in typed:  # and paths whose bytes are not valid UTF-8
        if _is_path(option, types) and option != _clean(option):
            values[option[2:].partition("=")[0]] = Path(option.partition("=")[2])
    return values


def _split(arguments: list[str], types: dict[str, Any], aliases: Mapping[str, str]) -> tuple[list[str], list[str], str]:
    """Sort arguments into options (each as one `--name=value`), bare words, and the help flag ("" if there is none)."""
    options: list[str] = []
    words: list[str] = []
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            return options, words + left, ""
        if word in ("-h", "--help", HELP_ALL):
            return options, [], word
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        spelled, given, value = word.partition("=")
        name = _option_name(spelled, types, aliases)
        flag = name == PRINT_CONFIG or types.get(name) is bool
        if flag and not given:
            takes_next = name != PRINT_CONFIG and left[:1] in (["true"], ["false"])
            value = left.pop(0) if takes_next else "true"
        elif not given:
            if not left:
                raise ValueError(f"{spelled}: expected a value after it")
            value = left.pop(0)
        if _takes_words(types.get(name)) and not value.lstrip().startswith("["):
            value = write_list([value])
        options.append(f"--{name}" if name == PRINT_CONFIG else f"--{name}={value}")
    return options, words, ""


def _option_name(spelled: str, types: dict[str, Any], aliases: Mapping[str, str]) -> str:
    """The field that an option means; hyphens count as underscores. Unknown options are refused."""
    if spelled in aliases:
        return aliases[spelled]
    name = spelled[2:].replace("-", "_") if spelled.startswith("--") else ""
    table, _, key = spelled[2:].partition(".")
    if name in types or name in ("config", PRINT_CONFIG):
        return name
    if key and typing.get_origin(types.get(table.replace("-", "_"))) is dict:
        return f"{table.replace('-', '_')}.{key}"
    raise ValueError(f"unknown option {spelled}{nearest(spelled, [*(f'--{known}' for known in types), *aliases])}")


def _recipes(options: list[str]) -> list[str]:
    """The options that name recipes; a recipe that is not text is refused."""
    recipes = [option for option in options if option.startswith("--config=")]
    for option in recipes:
        _check_text(option.partition("=")[2])
    return recipes


def _no_word_for(tokenizer: str, types: dict[str, Any], positionals: tuple[str, ...]) -> dict[str, Any]:
    """The default value of the first positional, if it is an optional tokenizer."""
    if not tokenizer:
        return {}
    return {positionals[0]: (tokenizer,) if _is_sequence(types[positionals[0]]) else tokenizer}


def _expected(
    words: list[str], options: list[str], types: dict[str, Any], positionals: tuple[str, ...], first_is_optional: bool
) -> tuple[str, ...]:
    """The positionals that the words stand for: without those given as options, and without an omitted tokenizer."""
    named = {option[2:].partition("=")[0] for option in options}
    left = tuple(name for name in positionals if name not in named)
    if first_is_optional and left[:1] == positionals[:1]:
        most = math.inf if any(_is_sequence(types[name]) for name in left[1:]) else len(left) - 1
        return left if begins_with_tokenizer(words, most) else left[1:]
    return left


def _texts(options: list[str]) -> dict[str, str]:
    """Top-level options that are text; values of the command line override those of recipes, as in the parser."""
    recipes = [Path(option.partition("=")[2]) for option in _recipes(options)]
    tables = [read_recipe(recipe) for recipe in recipes if recipe.is_file()]
    typed = dict(option[2:].split("=", 1) for option in options if "=" in option)
    return {name: value for table in [*tables, typed] for name, value in table.items() if isinstance(value, str)}


def _name_positionals(
    words: list[str], types: dict[str, Any], positionals: tuple[str, ...]
) -> dict[str, str | list[str]]:
    """Field -> its bare word, or its words if it is a sequence."""
    spare = len(words) - len(positionals)
    given: dict[str, str | list[str]] = {}
    left = list(words)
    for name in positionals:
        if left and _is_sequence(types[name]):
            given[name], left = left[: max(1, spare + 1)], left[max(1, spare + 1) :]
        elif left:
            given[name] = left.pop(0)
    if left:
        expected = " ".join(name.upper() for name in positionals) or "none"
        raise ValueError(f"unexpected argument {left[0]!r}, expected arguments: {expected}")
    return given


def _as_yaml(words: list[str]) -> str:
    """A list as one line of YAML, whose escapes cover all of Unicode but not bytes that are not valid UTF-8."""
    return write_list([_clean(word) for word in words])


def _clean(text: str) -> str:
    """Text with a question mark for every byte that is not valid UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_path(option: str, types: dict[str, Any]) -> bool:
    """Whether an option, "--name=value", takes a path."""
    hint = types.get(option[2:].partition("=")[0])
    return hint is Path or Path in typing.get_args(hint)


def _takes_words(hint: Any) -> bool:
    """Whether an option takes a list of words: one word then needs no brackets."""
    element = typing.get_args(hint)[0] if _is_sequence(hint) else None
    return element is str or typing.get_origin(element) is Literal


def _is_sequence(hint: Any) -> bool:
    return typing.get_origin(hint) in (tuple, list)


def _build(config_class: type[Config], values: Any, prefix: str) -> Config:
    """Construct a config and its nested configs from plain values; the errors of `__post_init__` name the option."""
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.')}: got {values!r}, expected a table of options")
    hints = typing.get_type_hints(config_class)
    arguments = {}
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        hint, value = hints[field.name], values[field.name]
        nested = dataclasses.is_dataclass(hint)
        _check_numbers(f"{prefix}{field.name}", value)
        arguments[field.name] = _build(hint, value, f"{prefix}{field.name}.") if nested else value
    try:
        return config_class(**arguments)
    except ValueError as error:
        grouped = bool(prefix) and str(error).partition(":")[0] in hints
        raise ValueError(f"--{prefix}{error}" if grouped else str(error)) from error


def _check_text(recipe: str) -> None:
    """Refuse a recipe that is not UTF-8, with its name; jsonargparse checks that it exists and is YAML."""
    try:
        if Path(recipe).is_file():
            Path(recipe).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--config: {recipe} is not text in UTF-8 ({error.reason} at byte {error.start})") from error


def _check_numbers(name: str, value: Any) -> None:
    """Refuse numbers that YAML allows but no option takes: NaN, and integers of over 64 bits; at any depth."""
    if isinstance(value, Mapping):
        for key, member in value.items():
            _check_numbers(f"{name}.{key}", member)
    elif isinstance(value, list | tuple):
        for member in value:
            _check_numbers(name, member)
    elif isinstance(value, float) and math.isnan(value):
        raise ValueError(f"--{name}: got nan, expected a number")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"--{name}: got {value}, expected a whole number of at most 64 bits")


def _shorten(message: str, types: dict[str, Any], positionals: tuple[str, ...]) -> str:
    """A message of jsonargparse as one short line."""
    if match := re.fullmatch(r"(?:Option|Group) '(.*?)' (?:is not accepted|does not accept option '(.*?)')", message):
        name = ".".join(part for part in match.groups() if part)
        return f"unknown option {name!r} in the recipe{nearest(name, list(types))}"
    if match := re.match(r"the following arguments are required: (.*)", message):
        missing = [name.strip() for name in match[1].split(",")]
        return f"missing {', '.join(name.upper() if name in positionals else f'--{name}' for name in missing)}"
    if match := re.match(r"Parser key \"(.*?)\":\s*(.*)", message, re.DOTALL):
        return f"--{match[1]}: {_expectation(match[2], types.get(match[1]))}"
    if match := re.match(r"(?:Problems parsing config|Unexpected config):(.*)", message, re.DOTALL):
        return "--config: not a recipe (a YAML table of options): " + (" ".join(match[1].split()) or "empty")
    return " ".join(message.split())


def _expectation(text: str, hint: Any) -> str:
    """'got V, expected T' if the text says which value was refused, else the text in one line."""
    if match := re.search(r"(?:Got|Given) value: (.*)", text, re.DOTALL):
        return f"got {' '.join(match[1].split())}, expected {type_name(hint)}"
    return " ".join(text.split())
