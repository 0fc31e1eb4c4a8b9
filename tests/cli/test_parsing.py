"""From arguments to a config: every way to write it, and every way to get it wrong."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.cli.parsing import option_types, parse_config


@dataclass(frozen=True)
class Inner:
    """Inner things."""

    lr: float = 1e-3
    """How fast."""
    steps: int = 10
    """How long."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Two numbers."""

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected at least 1")


@dataclass(frozen=True)
class Outer:
    """Outer things."""

    run: str
    """Where from."""
    images: tuple[str, ...]
    """Which ones."""
    out: str
    """Where to."""
    inner: Inner = field(default_factory=lambda: Inner(lr=0.5))
    """The inner part."""
    table: dict[str, float] = field(default_factory=lambda: {"l1": 1.0})
    """Weights by name."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Anything."""
    size: int | tuple[int, int] | None = 64
    """A side, two sides or none."""
    mode: Literal["fast", "slow"] = "fast"
    """Which way."""
    layout: Literal["auto"] | bool = "auto"
    """Which layout."""
    fail_on_collapse: bool = False
    """Whether to fail."""


def parse(*arguments, positionals=("run", "images")):
    return parse_config(Outer, list(arguments), prog="smalti outer", positionals=positionals, aliases={"-o": "out"})


BASE = ("r", "a.png", "-o", "o")


def test_one_word_is_a_list_of_one():
    assert parse("r", "-o", "o", "--images", "a.png") == parse("r", "-o", "o", '--images=["a.png"]') == parse(*BASE)


def test_defaults_are_those_of_the_dataclass_also_of_a_changed_inner_one():
    assert parse(*BASE) == Outer("r", ("a.png",), "o")
    assert parse(*BASE, "--inner.steps", "3").inner == Inner(lr=0.5, steps=3)


@pytest.mark.parametrize(
    "arguments",
    [
        ("r", "a", "b", "--out", "o"),
        ("--out", "o", "r", "a", "b"),
        ("r", "-o", "o", "a", "b"),
        ("r", "a", "-o=o", "b"),
        ("--out=o", "--run=r", '--images=["a","b"]'),
        ("-o", "o", "--", "r", "a", "b"),
    ],
)
def test_positions_and_options_may_be_mixed(arguments):
    assert parse(*arguments) == Outer("r", ("a", "b"), "o")


def test_a_list_in_the_middle_leaves_the_last_word_to_the_last_field():
    config = parse("r", "a", "b", "o", positionals=("run", "images", "out"))
    assert (config.images, config.out) == (("a", "b"), "o")


@pytest.mark.parametrize(
    "name",
    [
        "-weird",
        "true",
        "null",
        "3",
        "a: b",
        "[x]",
        "@file",
        "with space",
        "猫.png",
        "🙂",
        "\udcff.png",
        "a=b",
        "a\nb",
        '"',
        "\\",
    ],
)
def test_file_names_are_taken_as_they_are(name):
    config = parse("-o", name, "--", name, name)
    assert (config.run, config.images, config.out) == (name, (name,), name)


@dataclass(frozen=True)
class WithPaths:
    """Takes paths."""

    out: Path
    """Where to."""
    other: Path | None = None
    """Where else."""


@pytest.mark.parametrize("name", ["\udcff.png", "图/\udce7\udc8c\udcab", "a b"])
def test_paths_are_taken_as_they_are_whatever_their_bytes(name):
    for arguments in ([name, "--other", name], [f"--out={name}", f"--other={name}"]):
        parsed = parse_config(WithPaths, arguments, prog="smalti", positionals=("out",))
        assert parsed == WithPaths(Path(name), Path(name))


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=2))
def test_any_words_come_back(words):
    config = parse("--out=o", "--", *words)
    assert (config.run, *config.images) == tuple(words)


def test_flags_need_no_value_and_hyphens_are_underscores():
    assert parse("--fail-on-collapse", *BASE).fail_on_collapse is True
    assert parse(*BASE, "--fail_on_collapse").fail_on_collapse is True
    assert parse(*BASE, "--fail_on_collapse=false").fail_on_collapse is False
    assert parse(*BASE, "--fail_on_collapse", "false").fail_on_collapse is False


def test_values_of_every_type():
    config = parse(
        *BASE, "--size=[3,4]", "--inner.lr", "1e-2", "--inner.betas=[0,0.5]", "--mode", "slow", "--layout", "off"
    )
    assert (config.size, config.inner.lr, config.inner.betas, config.mode) == ((3, 4), 0.01, (0.0, 0.5), "slow")
    assert config.layout is False
    assert parse(*BASE, "--size", "null").size is None
    assert parse(*BASE, "--inner.lr", "-1").inner.lr == -1


def test_tables_are_changed_by_name():
    assert parse(*BASE, "--table.l2", "3").table == {"l1": 1.0, "l2": 3.0}
    assert parse(*BASE, "--table={l2: 3}").table == {"l2": 3.0}
    assert parse(*BASE, "--extra.a", "[1, 2]", "--extra.b=x").extra == {"a": [1, 2], "b": "x"}


@pytest.fixture
def recipe(tmp_path):
    def write(content):
        path = tmp_path / "recipe.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write


def test_a_recipe_gives_any_field_and_the_command_line_wins_wherever_it_stands(recipe):
    path = recipe("run: x\nout: y\nimages: [a]\ninner: {lr: 1e-2, steps: 5}\nlayout: on\ntable: {l2: 1}\n")
    for arguments in (("--config", path, "--inner.lr", "7"), ("--inner.lr=7", f"--config={path}")):
        assert parse(*arguments) == Outer("x", ("a",), "y", Inner(7.0, 5), {"l2": 1.0}, layout=True)
    assert parse("r", "--config", path).run == "r"


def test_later_recipes_win(recipe, tmp_path):
    first = recipe({"run": "x", "out": "y", "images": ["a"], "mode": "slow"})
    second = tmp_path / "second.yaml"
    second.write_text("out: z\n")
    config = parse("--config", first, "--config", str(second))
    assert (config.out, config.mode) == ("z", "slow")


def test_a_printed_config_is_a_recipe_for_the_same_config(recipe, capsys):
    arguments = (*BASE, "--size=[3,4]", "--inner.betas=[0.5,0.5]", "--table.l2=3", "--extra.a=b")
    with pytest.raises(SystemExit) as end:
        parse(*arguments, "--print_config")
    assert end.value.code == 0
    assert parse("--config", recipe(capsys.readouterr().out)) == parse(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "missing RUN, IMAGES, --out"),
        (("r", "a"), "missing --out"),
        ((*BASE, "--inner.step", "3"), "unknown option --inner.step, did you mean '--inner.steps'?"),
        ((*BASE, "--fail-on-colapse"), "unknown option --fail-on-colapse, did you mean '--fail_on_collapse'?"),
        ((*BASE, "--out-dir=x"), "unknown option --out-dir, did you mean '--out'?"),
        ((*BASE, "-q"), "unknown option -q, did you mean '-o'?"),
        ((*BASE, "--zzzzzz", "3"), "unknown option --zzzzzz"),
        ((*BASE, "--inner", "3"), "unknown option --inner, did you mean '--inner.lr'?"),
        ((*BASE, "--inner.lr.x", "3"), "unknown option --inner.lr.x, did you mean '--inner.lr'?"),
        ((*BASE, "--inner.steps"), "--inner.steps: expected a value after it"),
        ((*BASE, "--inner.steps", "many"), "--inner.steps: got many, expected a whole number"),
        ((*BASE, "--inner.steps", "1.5"), "--inner.steps: got 1.5, expected a whole number"),
        ((*BASE, "--inner.lr=nan"), "--inner.lr: got nan, expected a number"),
        ((*BASE, "--inner.lr="), "--inner.lr: got , expected a number"),
        ((*BASE, "--mode", "quick"), "--mode: got quick, expected one of fast, slow"),
        ((*BASE, "--layout", "x"), "--layout: got x, expected auto or true or false"),
        (
            (*BASE, "--size", "3,4"),
            "--size: got 3,4, expected a whole number or [a whole number, a whole number] or null",
        ),
        ((*BASE, "--table", "3"), "--table: got 3, expected a table with a number for each name"),
        ((*BASE, "--table.l1=x"), "--table: got x, expected a table with a number for each name"),
        ((*BASE, "--fail_on_collapse=maybe"), "--fail_on_collapse: got maybe, expected true or false"),
        ((*BASE, "--inner.steps=0"), "--inner.steps: got 0, expected at least 1"),
        ((*BASE, "--config"), "--config: expected a value after it"),
        ((*BASE, "--config", "/nowhere.yaml"), "--config: File does not exist: '/nowhere.yaml'"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message):
    with pytest.raises(ValueError, match=r".") as caught:
        parse(*arguments)
    assert str(caught.value) == message


def test_too_many_words():
    with pytest.raises(ValueError, match="unexpected argument 'c', expected arguments: RUN OUT"):
        parse("r", "b", "c", positionals=("run", "out"))
    with pytest.raises(ValueError, match="unexpected argument 'c', expected arguments: none"):
        parse("c", positionals=())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("mode: quick", "--mode: got quick, expected one of fast, slow"),
        ("inner: {lrr: 3}", "unknown option 'inner.lrr' in the recipe, did you mean 'inner.lr'?"),
        ("foo: 3", "unknown option 'foo' in the recipe"),
        ("inner: 3", "inner: got 3, expected a table of options"),
        ("inner: {steps: 0}", "--inner.steps: got 0, expected at least 1"),
        ("inner: {steps: [1]}", "--inner.steps: got [1], expected a whole number"),
        ("", "--config: not a recipe (a YAML table of options): empty"),
        ("- a", "--config: not a recipe (a YAML table of options): - a"),
    ],
)
def test_mistakes_in_a_recipe(recipe, content, message):
    with pytest.raises(ValueError, match=r".") as caught:
        parse(*BASE, "--config", recipe(content))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "content", ["a: [", "a: b: c", "\t", "a: !!python/object/apply:os.getcwd []", "\0", "a: &b *b"]
)
def test_what_is_no_yaml_is_one_line(recipe, content):
    with pytest.raises(ValueError, match=r"^--config: not a recipe|^unknown option 'a'") as caught:
        parse(*BASE, "--config", recipe(content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1", "gb18030"])
def test_a_recipe_in_another_encoding_is_named(encoding, tmp_path):
    (tmp_path / "notes.yaml").write_bytes(
        "run: Größe 猫".replace("猫" if encoding == "latin-1" else "", "").encode(encoding)
    )
    with pytest.raises(ValueError, match=r"^--config: .*notes\.yaml is not text in UTF-8 \(.*\)$"):
        parse(*BASE, "--config", str(tmp_path / "notes.yaml"))


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--inner.lr=.nan", "--inner.lr: got nan"),
        ("--inner.betas=[.nan, 1]", "--inner.betas: got nan"),
        ("--table.l1=.nan", "--table.l1: got nan"),
        ("--extra={a: {b: [1, .nan]}}", "--extra.a.b: got nan"),
        ("--size=9999999999999999999999", "--size: got 9999999999999999999999"),
        ("--extra.a=-9999999999999999999999", "--extra.a: got -9999999999999999999999"),
        ("--extra=" + "[" * 3000, "--extra|options"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_in_any_depth(option, named):
    with pytest.raises(ValueError, match=rf"^{named}") as caught:
        parse(*BASE, option)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), (*BASE, "--help-all"), ("--inner.steps", "3", "-h")])
def test_help_shows_every_field_with_its_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*arguments)
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: smalti outer RUN IMAGES... [--option value ...]" in text
    for name in option_types(Outer):
        assert f"--{name} " in text or name in ("run", "images")
    parts = ("RUN Where from. (required)", "IMAGES... Which ones. (required)", "-o, --out OUT Where to. (required)")
    choices = ("--mode {fast,slow} Which way. (default: fast)", "--layout {auto,true,false} Which layout.")
    numbers = ("--inner.lr LR How fast. (default: 0.5)", "--inner.betas BETAS Two numbers. (default: [0.9, 0.99])")
    for part in (
        *parts,
        *choices,
        *numbers,
        "--fail_on_collapse Whether to fail.",
        "Weights by name. (default: {l1: 1.0})",
    ):
        assert part in text


def test_words_after_two_dashes_are_never_help():
    assert parse("-o", "o", "--", "r", "--help").images == ("--help",)


def test_option_types_are_those_of_all_leaves():
    assert option_types(Inner) == {"lr": float, "steps": int, "betas": tuple[float, float]}
    assert set(option_types(Outer)) >= {"run", "inner.lr", "inner.steps", "table"}
    assert "inner" not in option_types(Outer)
    assert json.dumps(sorted(option_types(Outer)))
