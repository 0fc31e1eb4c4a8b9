"""Every option of every command at 0, at -1, huge, NaN and of the wrong type: one line and exit code 2, or accepted.

First all of it with the work itself cut off, then the extreme numbers that were accepted with the work done.
"""

import importlib
import shutil
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from zoo.test_damage import tiny_taming

from smalti.cli import COMMANDS, INTERRUPTED, USER_ERROR, main, module_of, parsing
from smalti.cli.parsing import option_types
from smalti.jobs.tokenize import TokenizeConfig, tokenize
from smalti.priors import TokenLayout
from smalti.tokenizers import SimpleVQVAE
from smalti.zoo import build_prior

NUMBERS = ("0", "-1", "1000000000000", ".nan", "99999999999999999999999")
"""For every option that takes a number."""
WRONG = ("abc", "null", "[-1]", "{a: 1}", "1e400", "1.5")
"""For one option of every type in every command: what it takes depends on the type alone."""
SHORT = "--optimization.steps=1", "--optimization.batch_size=2", "--precision=fp32"
MODEL = "--model=simple", "--model_args={hidden_dim: 4, vocab_size: 8, embedding_dim: 4}"
INPUT = "--input.size=8", "--input.zoom=1", "--loss_weights={l1: 1}"


@dataclass(frozen=True)
class Command:
    """How a command is called with all that it needs, and what does its work."""

    arguments: tuple[str, ...]
    config: str
    work: str


CASES = {
    "train": Command(("photos", "-o", "OUT", *MODEL, *INPUT, *SHORT), "TrainConfig", "train"),
    "eval": Command(("run", "photos", "--judges=[]"), "EvalCommand", "evaluate"),
    "compare": Command(("run", "photos", "--judges=[]", "--codecs=[]"), "CompareCommand", "compare"),
    "encode": Command(("run", "photos/0.png", "-o", "OUT"), "EncodeConfig", "encode"),
    "decode": Command(("run", "one.smalti", "-o", "OUT"), "DecodeConfig", "decode"),
    "reconstruct": Command(("run", "photos/0.png", "OUT.png"), "ReconstructConfig", "reconstruct"),
    "tokenize": Command(("run", "photos", "-o", "OUT"), "TokenizeCommand", "tokenize"),
    "tokens verify": Command(("tokens",), "TokensConfig", "check_tokens"),
    "tokens info": Command(("tokens",), "TokensConfig", "describe_tokens"),
    "tokens show": Command(("tokens", "0.png", "OUT.png"), "ShowTokensConfig", "show_tokens"),
    "train-codec": Command(
        ("tokens", "-o", "OUT", "--training.steps=1", "--training.batch_size=2"), "TrainCodecConfig", "train_codec"
    ),
    "train-prior": Command(
        ("tokens", "-o", "OUT", "--prior_args={depth: 1, width: 8, num_heads: 2}", *SHORT),
        "TrainPriorConfig",
        "train_prior",
    ),
    "sample": Command(("prior", "-o", "OUT", "-n", "1", "--precision=fp32"), "SampleConfig", "sample"),
    "eval-samples": Command(("photos", "photos", "--judges=[]"), "EvalSamplesCommand", "evaluate_samples"),
    "play": Command(("run", "--no-browser"), "PlayConfig", "play"),
    "import": Command(("model.pt", "OUT"), "ImportConfig", "import_checkpoint"),
    "export": Command(("run", "OUT", "--format=torch-export"), "ExportConfig", "export"),
    "doctor": Command((), "DoctorCommand", "doctor"),
    "demo": Command(("-o", "OUT", "--optimization.steps=1"), "DemoConfig", "demo"),
}

ENDLESS = ("steps", "count", "crops", "port")
"""Fields whose extreme values are accepted, and the work then goes on until somebody stops it."""


def test_every_command_is_swept():
    assert {case.split()[0] for case in CASES} == set(COMMANDS)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Two pictures, a tokenizer, a token data set, a prior, a published checkpoint: all tiny."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "photos").mkdir()
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photos/{n}.png")
    torch.manual_seed(0)
    tokenizer = SimpleVQVAE(8, 4, 4)
    tokenizer.save_pretrained(folder / "run")
    tokenize(TokenizeConfig(str(folder / "run"), str(folder / "photos"), str(folder / "tokens"), size=8))
    layout = TokenLayout(8, ((2, 2),), (8, 8), tokenizer.fingerprint)
    build_prior("next-token-small", layout, 0, depth=1, width=8, num_heads=2).save_pretrained(folder / "prior")
    shutil.copytree(folder / "run", folder / "prior/tokenizer")
    torch.save(tiny_taming(), folder / "model.pt")
    assert main(["encode", str(folder / "run"), str(folder / "photos/0.png"), "-o", str(folder / "one.smalti")]) == 0
    return folder


@pytest.fixture
def call(world, tmp_path, monkeypatch, capsys):
    """Call a command with one option more; the exit code and what it said on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(case: str, option: str, value: str) -> tuple[int, str]:
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        there = [
            word.replace("OUT", str(tmp_path / "out")) if word.startswith("OUT") else str(world / word)
            if (world / word).exists() else word
            for word in CASES[case].arguments
        ]  # fmt: skip
        code = main([*case.split(), *there, f"--{option}={value}"])
        return code, capsys.readouterr().err

    return run


def config_of(case: str) -> type:
    return getattr(importlib.import_module(module_of(case.split()[0])), CASES[case].config)


def owner(config: type, option: str) -> tuple[type, str]:
    """The dataclass that an option comes from, and its field."""
    name, _, rest = option.partition(".")
    if rest and is_dataclass(inner := get_type_hints(config)[name]):
        return owner(inner, rest)
    return next(base for base in reversed(config.__mro__) if name in vars(base).get("__dataclass_fields__", ())), name


def sweep() -> dict[str, list[tuple[str, str]]]:
    """Case → options and values. What commands share is swept once, where there are fewest options; the demo last."""
    seen: set[object] = set()
    chosen: dict[str, list[tuple[str, str]]] = {}
    for case in sorted(CASES, key=lambda case: (case == "demo", len(option_types(config_of(case))))):
        chosen[case] = []
        for option, hint in option_types(config_of(case)).items():
            if (place := owner(config_of(case), option)) not in seen:
                values = NUMBERS if "int" in str(hint) or "float" in str(hint) else ()
                values += () if (case, str(hint)) in seen else WRONG
                seen |= {place, (case, str(hint))}
                chosen[case] += [(option, value) for value in values]
    return chosen


SWEEP = sweep()


def faults(case: str, option: str, value: str, code: int, said: str, accepted: tuple[int, ...]) -> list[str]:
    lines = [line for line in said.splitlines() if "error:" in line or "Traceback" in line]
    fine = code in accepted or (code == USER_ERROR and len(lines) == 1 and said.count("\n") == 1 and len(said) < 2000)
    return [] if fine else [f"{case} --{option}={value}: exit code {code}, {said[-300:]!r}"]


@pytest.mark.parametrize("case", CASES)
def test_every_value_is_accepted_or_refused_in_one_line(case, call, monkeypatch):
    def cut(*_, **__):
        raise KeyboardInterrupt

    parser = parsing._parser
    monkeypatch.setattr(importlib.import_module(module_of(case.split()[0])), CASES[case].work, cut)
    made = parser(config_of(case), case)
    monkeypatch.setattr(parsing, "_parser", lambda *_: made)
    wrong = []
    for option, value in SWEEP[case]:
        wrong += faults(case, option, value, *call(case, option, value), (INTERRUPTED,))
    assert wrong == []


@pytest.mark.parametrize("case", CASES)
def test_extreme_numbers_that_are_accepted_do_no_harm(case, call):
    wrong = []
    for option, value in SWEEP[case]:
        if value in NUMBERS and option.rpartition(".")[2] not in ENDLESS:
            wrong += faults(case, option, value, *call(case, option, value), (0,))
    assert wrong == []
