"""`smalti train-prior` with two processes, each with the whole prior or with a part of it: as one process.

The launchers themselves are tested by `test_many_processes.py`.
"""

import shutil
from pathlib import Path

import pytest
import torch
from clean_interpreter import CleanInterpreter
from safetensors.torch import load_file
from small_prior_runs import run, token_set, without_speed

from smalti.training import OptimizationConfig
from smalti.zoo import load_prior

pytest.importorskip("accelerate")

PRIOR = {"depth": 2, "width": 16, "num_heads": 2, "class_dropout": 0.0}
OPTIMIZATION = OptimizationConfig(
    steps=6, batch_size=8, accumulate=2, warmup_steps=2, lr=5e-3, min_lr_ratio=1.0, ema_decay=0.9
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return token_set(tmp_path_factory.mktemp("data") / "tokens")


@pytest.fixture(scope="module")
def one(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of one process, whose train.yaml is the recipe of all others; a short run is half of a long one."""
    out = tmp_path_factory.mktemp("one") / "prior"
    run(tokens, out, prior_args=PRIOR, optimization=OPTIMIZATION)
    return out


def check_as_one(out: Path, one: Path) -> None:
    lines, expected = without_speed(out), without_speed(one)
    assert len(lines) == len(expected) == 8
    for line, theirs in zip(lines, expected, strict=True):
        assert line == pytest.approx(theirs, rel=1e-4)
    for name in ("model.safetensors", "checkpoints/000006/trained.safetensors"):
        ours, theirs = load_file(out / name), load_file(one / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)


def test_two_processes_do_what_one_does(one: Path, clean: CleanInterpreter, tmp_path: Path) -> None:
    done = clean.train_together("smalti", "train-prior", "--config", one / "train.yaml", "--out", tmp_path / "two")
    assert done.stdout.count("trained 6 steps") == 1  # the first process alone speaks
    states = torch.load(tmp_path / "two/checkpoints/000006/training.pt", weights_only=True)["random"]
    assert len(states) == 2
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])  # each draws its own dropout and masks
    check_as_one(tmp_path / "two", one)


def test_two_processes_that_hold_the_prior_together_do_what_one_does(
    one: Path, tokens: Path, clean: CleanInterpreter, tmp_path: Path
) -> None:
    """Three steps in parts; three more in parts, or by one process alone."""
    out, alone = tmp_path / "parts", tmp_path / "alone"
    command = ["smalti", "train-prior", "--config", one / "train.yaml", "--out", out, "--sharded"]
    clean.train_together(*command, "--optimization.steps", "3", "--gradient_checkpointing", "true")
    shutil.copytree(out, alone)
    clean.train_together(*command, "--resume")
    run(tokens, alone, prior_args=PRIOR, optimization=OPTIMIZATION, resume=True)
    for folder in (out, alone):
        check_as_one(folder, one)
        assert type(load_prior(folder)) is type(load_prior(one))


def test_parts_need_several_processes(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither torchrun nor accelerate launch"):
        run(tokens, tmp_path / "out", sharded=True)
    assert not (tmp_path / "out").exists()
