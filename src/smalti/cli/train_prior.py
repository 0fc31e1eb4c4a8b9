"""`smalti train-prior TOKENS --out PRIOR`: a prior on a token data set, in one process or several as `smalti train`."""

import shlex
import sys

from smalti.cli import INTERRUPTED
from smalti.cli.launched import in_launch
from smalti.cli.parsing import parse_config
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
"""What `--help` shows first, and the options that it shows."""


def run(arguments: list[str]) -> int:
    """Train, and say what came of it and what to do next."""
    return in_launch(lambda first: _train(arguments, first))


def _train(arguments: list[str], first: bool) -> int:
    config = parse_config(
        TrainPriorConfig,
        arguments,
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
    """What a person needs to know after a run, and the command that comes next."""
    out = shlex.quote(result.out)
    if result.interrupted:
        return (
            f"stopped after step {result.step} of {result.steps}; {out} can be used as it is\n"
            f"go on with: smalti train-prior --config {shlex.quote(f'{result.out}/train.yaml')} --resume"
        )
    measured = result.bits_per_token == result.bits_per_token  # NaN where nothing was held out
    quality = f": {result.bits_per_token:.3f} bits a token, {result.bits_per_pixel:.4f} bits a pixel on held-out images"
    done = f"trained {result.step} steps: {out}{quality if measured else ''}"
    return f"{done}\ndraw from it: smalti sample {out} --out samples"
