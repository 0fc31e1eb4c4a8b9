"""`smalti train DATA --out RUN`, or `smalti train --config RECIPE.yaml` with any field overridden.

torchrun or accelerate launch start it as several processes (`torchrun --nproc_per_node 2 -m smalti.cli train ...`);
then only the first one prints.
"""

import shlex
import sys
from pathlib import Path

from smalti.cli import INTERRUPTED
from smalti.cli.counted import counted
from smalti.cli.launched import in_launch
from smalti.cli.parsing import parse_config
from smalti.cli.resumed import with_settings_of_run
from smalti.jobs.train import TrainConfig, TrainResult, train
from smalti.jobs.train_config import ModelDefaults
from smalti.training import console_reporter

EXAMPLES = (
    "smalti train photos --init_from photo-f8 --out runs/photos",
    "smalti train embedded --model simple --out runs/simple",
)
COMMON = ("out", "model", "init_from", "resume", "force", "input.size", "optimization.steps", "optimization.lr")
"""`--help` shows these examples and options."""


def run(arguments: list[str]) -> int:
    """Train, then print the result and the next command; returns the exit code."""
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
    """The config of a call; options that are not set take the defaults of the model."""
    return parse_config(
        TrainConfig,
        with_settings_of_run(arguments),
        prog="smalti train",
        positionals=("data",),
        aliases={"-o": "out"},
        defaults=lambda given: ModelDefaults.of(given.get("model", "auto"), given.get("init_from", "")).options(),
        examples=EXAMPLES,
        common=COMMON,
    )


def summary(result: TrainResult, data: str) -> str:
    """The result of a run, and the next command."""
    run = shlex.quote(result.run)
    skipped = f" ({result.skipped} skipped because the loss was not finite)" if result.skipped else ""
    if result.interrupted:
        return (
            f"stopped after step {result.step} of {result.steps}{skipped}; {run} can be used as it is\n"
            f"continue with: smalti train --config {shlex.quote(f'{result.run}/train.yaml')} --resume"
        )
    samples = Path(result.run, "samples")
    drawn = f"samples:         {shlex.quote(str(samples))}\n" if samples.is_dir() else ""
    best = f"best checkpoint: {shlex.quote(result.best)}\n" if result.best else ""
    return (
        f"trained {counted(result.step, 'step')}{skipped}: {run}\n{drawn}"
        f"curves:          tensorboard --logdir {run}\n{best}"
        f"evaluate:        smalti eval {run} {shlex.quote(data)}"
    )
