"""Train, be killed at a random moment, go on, again and again; run as a script by its test.

    python killed_runs.py PHOTOS OUT [DEATHS STEPS]

Prints a line for each death and leaves OUT/killed, and OUT/whole, which nobody killed. Children are forked, so that one
start of Python and torch serves all; the parent itself never trains.
"""

import multiprocessing
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch._dynamo  # noqa: F401  torch would import it in each child, at the first optimizer

from smalti.data import TransformConfig
from smalti.jobs.train import TrainConfig, train
from smalti.training import (
    OptimizationConfig,
    choose_runtime,
    list_checkpoints,
    load_checkpoint,
    start_state,
)
from smalti.zoo import load

DEATHS, STEPS = map(int, sys.argv[3:]) if sys.argv[3:] else (4, 20)


def config(photos: str, out: Path) -> TrainConfig:
    return TrainConfig(
        data=photos,
        out=str(out),
        model="simple",
        model_args={"hidden_dim": 4, "vocab_size": 8, "embedding_dim": 4},
        input=TransformConfig(size=8, crop="random"),
        optimization=OptimizationConfig(steps=STEPS, batch_size=2, warmup_steps=1),
        precision="fp32",
        log_every=1,
        sample_every=3,
        checkpoint_every=1,
    )


def check(run: Path) -> int:
    """Every checkpoint that is there can be loaded; the step of the newest."""
    for path in list_checkpoints(run / "checkpoints"):
        state = start_state(load(path), OptimizationConfig(), choose_runtime("cpu", "fp32"))
        load_checkpoint(path, state)
        assert state.step == int(path.name)
    return state.step


if __name__ == "__main__":
    photos, out = sys.argv[1], Path(sys.argv[2])
    fork, moments = multiprocessing.get_context("fork"), random.Random(0)
    setting = config(photos, out / "killed")
    deaths = 0
    while True:
        begun = bool(list_checkpoints(out / "killed" / "checkpoints"))
        child = fork.Process(target=train, args=(replace(setting, resume=begun, force=not begun),))
        child.start()
        if deaths == DEATHS:
            child.join()
            assert child.exitcode == 0
            break
        while child.is_alive() and not list_checkpoints(out / "killed" / "checkpoints"):
            time.sleep(0.01)  # the first one may take its time
        child.join(moments.uniform(0, 0.3))
        if child.exitcode is None:
            child.kill()
            child.join()
            deaths += 1
            print("killed after step", check(out / "killed"), flush=True)
        else:
            assert child.exitcode == 0
            break
    whole = fork.Process(target=train, args=(config(photos, out / "whole"),))
    whole.start()
    whole.join()
