"""`smalti train DATA --out RUN`, or `smalti train --config RECIPE.yaml` with any field overridden.

Started by torchrun or accelerate launch (`torchrun --nproc_per_node 2 -m smalti.cli train ...`) it is one of several
processes; then only the first one prints.
"""

import shlex
import sys

from smalti.cli import INTERRUPTED
from smalti.cli.launched import in_launch
from smalti.cli.parsing import parse_config
from smalti.jobs.train import TrainConfig, TrainResult, train
from smalti.jobs.train_config import ModelDefaults
from smalti.training import console_reporter

EXAMPLES = (
    "smalti train photos --init_from photo-f8 --out runs/photos",
    "smalti train embedded --model simple --out runs/simple",
)
COMMON = ("out", "model", "init_from", "resume", "force", "input.size", "optimization.steps", "optimization.lr")
"""What `--help` shows first, and the options that it shows."""


def run(arguments: list[str]) -> int:
    """Train, and say what came of it and what to do next."""
    return in_launch(lambda first: _train(arguments, first))


def _train(arguments: list[str], first: bool) -> int:
    config = parse(arguments)
    result = train(config, console_reporter())
    if first and result.unreadable:
        print(f"smalti train: {result.unreadable}", file=sys.stderr)
    if first:
        print(summary(result, config.data))
    return INTERRUPTED if result.interrupted else 0


def parse(arguments: list[str]) -> TrainConfig:
    """The config of a call; what neither options nor recipes say, the model does."""
    return parse_config(
        TrainConfig,
        arguments,
        prog="smalti train",
        positionals=("data",),
        aliases={"-o": "out"},
        defaults=lambda given: ModelDefaults.of(given.get("model", "auto"), given.get("init_from", "")).options(),
        examples=EXAMPLES,
        common=COMMON,
    )


def summary(result: TrainResult, data: str) -> str:
    """What a person needs to know after a run, and the command that comes next."""
    run = shlex.quote(result.run)
    skipped = f", {result.skipped} of them skipped because the loss was not finite" if result.skipped else ""
    if result.interrupted:
        return (
            f"stopped after step {result.step} of {result.steps}{skipped}; {run} can be used as it is\n"
            f"go on with: smalti train --config {shlex.quote(f'{result.run}/train.yaml')} --resume"
        )
    return (
        f"trained {result.step} steps{skipped}: {run}\n"
        f"look at:    {shlex.quote(f'{result.run}/samples')}, tensorboard --logdir {run}\n"
        f"best:       {shlex.quote(result.best)}\n"
        f"measure it: smalti eval {run} {shlex.quote(data)}"
    )
