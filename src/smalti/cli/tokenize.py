"""`smalti tokenize [RUN] DATA --out DIR`: a set of images to a token data set, with progress and a summary."""

import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from smalti.cli.counted import counted
from smalti.cli.measured import json_text
from smalti.cli.parsing import parse_config
from smalti.jobs.tokenize import TokenizeConfig, TokenizeResult, tokenize
from smalti.zoo import DEFAULT

EXAMPLES = (
    "smalti tokenize photos --out tokens",
    "smalti tokenize runs/photos photos --out tokens --size 256 --crops 4",
)
COMMON = ("out", "size", "crops", "mirrored", "workers", "json", "device", "force")
"""`--help` shows these examples and options."""

LISTED = 10
"""Images with problems that the summary lists at most."""


@dataclass(frozen=True)
class TokenizeCommand(TokenizeConfig):
    """Tokenize a set of images once, into a token data set for training."""

    json: bool = False
    """Print one JSON object instead of the summary; nothing else goes to stdout."""


def run(arguments: list[str]) -> int:
    """Parse, tokenize, print; returns the exit code."""
    command = parse_config(
        TokenizeCommand,
        arguments,
        prog="smalti tokenize",
        positionals=("run", "data"),
        aliases={"-o": "out"},
        tokenizer=DEFAULT,
        examples=EXAMPLES,
        common=COMMON,
    )
    console = Console(file=sys.stderr)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=None, speed="")

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)
            speed = progress.tasks[0].speed
            progress.update(task, speed="" if speed is None else f"{speed:.0f} images/s")

        with redirect_stdout(sys.stderr):  # Ray prints messages about failed workers to stdout
            result = tokenize(command, show)
    print(json_text(asdict(result)) if command.json else summary(result))
    return 0


def summary(result: TokenizeResult) -> str:
    """The result in a few lines of text."""
    each = "" if result.tokens is None else f" of {counted(result.tokens, 'token')}"
    lines = [
        f"{result.out}: {counted(result.images, 'image')}, {counted(result.rows, 'row')}{each}; "
        f"{result.made} of {counted(result.shards, 'shard')} written by this run"
    ]
    for what, record in (("could not be read", result.unreadable), ("lost their label or caption", result.notes)):
        if record:
            lines += [f"{counted(len(record), 'image')} {what}:"]
            lines += [f"  {key}: {reason}" for key, reason in list(record.items())[:LISTED]]
            lines += [f"  and {len(record) - LISTED} more"] * (len(record) > LISTED)
    if result.batch_mismatch:
        lines.append(f"share of tokens that depend on the batch of their image: {result.batch_mismatch:.2e}")
    if result.tokens is not None:  # priors need images of one size
        lines.append(f"next: smalti train-prior {result.out} --out prior")
    return "\n".join(lines)
