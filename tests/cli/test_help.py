"""`smalti COMMAND --help`: it fits on a screen, its examples are calls that the command takes, nothing is left out."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import test_documents
from small_box import some_photos

from smalti.cli import COMMANDS, main, module_of
from smalti.cli.parsing import option_types, parse_config

LINES = 40
QUESTIONS = ("tokens verify", "tokens info", "tokens show")
PAGES = pytest.mark.parametrize("command", [*(name for name in COMMANDS if name != "tokens"), *QUESTIONS])


@pytest.fixture
def page(command, box, tmp_path, monkeypatch, capsys):
    """Print a help page on a terminal of 80 columns; returns its lines."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def printed(flag):
        assert main([*command.split(), flag]) == 0
        return capsys.readouterr().out.splitlines()

    return printed


@PAGES
def test_it_fits_on_a_screen_and_begins_with_what_the_command_does(command, page):
    lines = page("--help")
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: smalti {command} ")
    assert lines[2][0].isupper()
    text = "\n".join(lines)
    order = [
        text.index(f"\n{heading}:\n") for heading in ("examples", "arguments", "options") if f"\n{heading}:" in text
    ]
    assert order == sorted(order)
    assert "type:" not in text
    assert "Literal" not in text


@PAGES
def test_its_examples_are_calls_that_the_command_takes(command, page, monkeypatch):
    for name in ("photo.jpg", "photo.tokens", "a.png", "b.png", "two.tokens"):
        Path(name).touch()
    some_photos(Path("photos"))
    lines = page("--help")
    first = lines.index("examples:") + 1
    examples = lines[first : lines.index("", first)]
    assert len(examples) == 2
    for example in examples:
        program, *arguments = shlex.split(example)
        assert program == "smalti"
        assert arguments[: len(command.split())] == command.split()
        test_documents.check_that_it_parses(arguments, monkeypatch)


@PAGES
def test_all_options_are_one_word_away(command, page, monkeypatch):
    seen = []

    def remember(config_class, *arguments, **keywords):
        seen.append((config_class, keywords))
        return parse_config(config_class, *arguments, **keywords)

    module = importlib.import_module(module_of(command.split()[0]))
    monkeypatch.setattr(module, "parse_config", remember)
    text = "\n".join(page("--help-all"))
    ((config_class, keywords),) = seen
    for name in option_types(config_class):
        assert re.search(rf"(^  |, )--{re.escape(name)}\b", text, re.MULTILINE) or name in keywords["positionals"], name
    assert set(keywords.get("common", ())) <= set(option_types(config_class))


def test_the_questions_to_a_token_data_set_are_listed(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert main(["tokens", *arguments]) == 0
        text = capsys.readouterr().out
        assert all(f"  smalti {question} " in text for question in QUESTIONS)
