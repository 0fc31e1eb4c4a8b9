"""Whatever is written as a recipe is read back: by PyYAML, by the command line, and when the run is resumed."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smalti.cli.parsing import parse_config
from smalti.cli.reproduce import reproduce_command
from smalti.formats.recipe import read_recipe, write_recipe
from smalti.formats.sealed_json import open_sealed, seal
from smalti.jobs.evaluate import EvaluateConfig
from smalti.jobs.train_config import TrainConfig, plain_settings
from smalti.jobs.train_prior import TrainPriorConfig
from smalti.training.run_folder import RunFolder

NASTY = (
    *(
        "4e10",
        "58899e0",
        "1e3",
        "1E5",
        "+1",
        "0x10",
        "0o7",
        "0b1",
        "0777",
        "1_000",
        "1:30",
        "1:30.5",
        "12",
        "-0",
        "1.5",
    ),
    *("no", "yes", "on", "off", "y", "n", "true", "False", "null", "~", "", ".inf", "inf", ".NaN", "nan", "2020-01-01"),
    *("a: b", "a:", ": a", "- x", "-x", "--x", "[1, 2]", "{a: 1}", "# x", "a #b", "'q'", '"', "\\", "%x", "@x", "`x`"),
    *("!x", "!!int 3", "&a", "*a", "|", ">", "?", "? x", "=", "<<", "---", "...", " lead", "trail ", "a\nb", "a\r\nb"),
    *("\t", "\x00", "\x1b[0m", "\x7f", "\x85", "\xa0", "\u2028", "\ufeff", "\ufffe", "é", "猫", "😀", "a" * 300),
)
"""What some reader of YAML takes for something else than this text."""

texts = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


def read_back(config: object, folder: Path) -> object:
    """The config that the command line makes of the train.yaml of this one; a resumed run must accept it, too."""
    run, settings = RunFolder(folder), plain_settings(config)
    run.write_settings(settings)
    assert read_recipe(folder / "train.yaml") == settings
    with pytest.raises(FileNotFoundError, match="no checkpoint"):  # its settings are those of the run
        run.check_resumable(settings)
    return parse_config(type(config), ["--config", str(folder / "train.yaml")], prog="x")


@pytest.mark.parametrize("first", range(0, len(NASTY), 6))
def test_a_run_called_anything_is_resumed_from_its_recipe(folder: Path, first: int) -> None:
    data, out, init_from, validation, pretrained, device = (NASTY * 2)[first : first + 6]
    config = TrainConfig(data, out, init_from=init_from, validation=validation, pretrained=pretrained, device=device)
    assert read_back(config, folder) == config


@settings(max_examples=12)
@given(texts, texts)
@example("4e10", "58899e0")
def test_any_names_come_back(folder: Path, data: str, out: str) -> None:
    config = TrainConfig(data, out)
    assert read_back(config, folder) == config
    prior = TrainPriorConfig(tokens=data, out=out)
    assert read_back(prior, folder) == prior


@settings(max_examples=40)
@given(
    st.recursive(
        texts | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=10,
    )
)
def test_any_table_comes_back_from_yaml(value: object) -> None:
    assert yaml.safe_load(write_recipe({"value": value})) == {"value": value}


@settings(max_examples=8)
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-300), st.integers(0, 2**62))
def test_any_numbers_come_back(folder: Path, number: float, whole: int) -> None:
    config = TrainConfig("a", "b", seed=whole, model="simple", model_args={"a": number, "b": whole, "c": [number]})
    config = replace(config, loss_weights={"l1": number})
    assert read_back(config, folder) == config


def test_a_printed_recipe_is_read_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("4e10", "58899e0", "no", "1:30"):
        with pytest.raises(SystemExit):
            parse_config(TrainConfig, [f"--data={text}", f"--out={text}", "--print_config"], prog="x")
        (folder / "printed.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
        config = parse_config(TrainConfig, ["--config", str(folder / "printed.yaml")], prog="x")
        assert (config.data, config.out) == (text, text)


@pytest.mark.parametrize("first", range(0, len(NASTY), 6))
def test_the_command_that_repeats_an_evaluation_is_read_back(first: int) -> None:
    run, data, *judges, device = (NASTY * 2)[first : first + 6]
    config = EvaluateConfig(run=run, data=data, judges=tuple(judges), device=device, size=(3, 4), min_usage=1e-7)
    words = shlex.split(reproduce_command("eval", config, EvaluateConfig, ("run", "data")))
    assert words[:2] == ["smalti", "eval"]
    assert parse_config(EvaluateConfig, words[2:], prog="x", positionals=("run", "data")) == config


def test_names_stand_without_quotes() -> None:
    assert write_recipe({"model": "multi-scale", "data": "my photos"}) == 'model: multi-scale\ndata: "my photos"\n'


# ---- JSON with a checksum --------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.dictionaries(st.sampled_from(["a", "é", "x y"]), st.text() | st.floats(allow_nan=False, allow_infinity=False))
)
@example({"a": "caf\udce9.png"})
@example({"a": "\ud83d\ude00"})
@example({"a": "\ud83d"})
@example({"a": "\\udce9"})
def test_sealed_tables_come_back_whatever_bytes_a_name_holds(table: dict) -> None:
    _, found = open_sealed(seal("kind", 1, table), "kind", 1)
    pairs = {k: v.encode("utf-16", "surrogatepass") if isinstance(v, str) else v for k, v in table.items()}
    assert {k: v.encode("utf-16", "surrogatepass") if isinstance(v, str) else v for k, v in found.items()} == pairs


def test_what_json_cannot_say_is_refused_before_it_is_written() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        seal("kind", 1, {"a": float("nan")})
