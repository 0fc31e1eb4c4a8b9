"""`smalti train-prior TOKENS --out PRIOR`: train a prior on a token data set, in one process or several."""

import shlex
import sys

from smalti.cli import INTERRUPTED
from smalti.cli.counted import counted
from smalti.cli.launched import in_launch
from smalti.cli.parsing import parse_config
from smalti.cli.resumed import with_settings_of_run
from smalti.jobs.train_prior import TrainPriorConfig, TrainPriorResult, train_prior
from smalti.training import console_reporter

EXAMPLES = (
    "smalti train-prior tokens --out prior",
    "smalti train-prior tokens --prior next-token-small --out prior",
)
COMMON = (
    "out",
    "prior",
    "resume",
    "force",
    "device",
    "optimization.steps",
    "optimization.batch_size",
    "optimization.lr",
)
"""`--help` shows these examples and options."""


def run(arguments: list[str]) -> int:
    """Train, then print the result and the next command; returns the exit code."""
    return in_launch(lambda first: _train(arguments, first))


def _train(arguments: list[str], first: bool) -> int:
    config = parse_config(
        TrainPriorConfig,
        with_settings_of_run(arguments),
        prog="smalti train-prior",
        positionals=("tokens",),
        aliases={"-o": "out"},
        examples=EXAMPLES,
        common=COMMON,
    )
    result = train_prior(config, console_reporter(sys.stderr))
    if first:
        print(summary(result))
    return INTERRUPTED if result.interrupted else 0


def summary(result: TrainPriorResult) -> str:
    """The result of a run, and the next command."""
    out = shlex.quote(result.out)
    if result.interrupted:
        return (
            f"stopped after step {result.step} of {result.steps}; {out} can be used as it is\n"
            f"continue with: smalti train-prior --config {shlex.quote(f'{result.out}/train.yaml')} --resume"
        )
    measured = result.bits_per_token == result.bits_per_token  # NaN where nothing was held out
    loss = f"{result.bits_per_token:.3f} bits per {result.predicted}"
    if result.predicted == "token":
        loss += f", {result.bits_per_pixel:.4f} bits per pixel"
    lines = [
        f"trained {counted(result.step, 'step')}: {out}",
        *([f"held-out images: {loss}"] if measured else []),
        f"sample from it:  smalti sample {out} --out samples",
    ]
    return "\n".join(lines)
