"""`smalti tokenize [RUN] DATA --out DIR`: a set of images to a token data set, with progress and a summary."""

import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from smalti.cli.measured import json_text
from smalti.cli.parsing import parse_config
from smalti.jobs.tokenize import TokenizeConfig, TokenizeResult, tokenize
from smalti.zoo import DEFAULT

EXAMPLES = (
    "smalti tokenize photos --out tokens",
    "smalti tokenize runs/photos photos --out tokens --size 256 --crops 4",
)
COMMON = ("out", "size", "crops", "mirrored", "workers", "json", "device", "force")
"""What `--help` shows first, and the options that it shows."""

LISTED = 10
"""Images with something wrong that the summary for people names."""


@dataclass(frozen=True)
class TokenizeCommand(TokenizeConfig):
    """Turn a set of images into a token data set."""

    json: bool = False
    """Print one JSON object instead of a sentence; nothing else goes to stdout."""


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

        with redirect_stdout(sys.stderr):  # where Ray tells of workers that failed
            result = tokenize(command, show)
    print(json_text(asdict(result)) if command.json else summary(result))
    return 0


def summary(result: TokenizeResult) -> str:
    """What a person needs to know."""
    each = "" if result.tokens is None else f" of {result.tokens} tokens"
    lines = [
        f"{result.out}: {result.images} images, {result.rows} rows{each}, {result.made} of {result.shards} shards now"
    ]
    for what, record in (("could not be read", result.unreadable), ("lost their label or caption", result.notes)):
        if record:
            lines += [f"{len(record)} images {what}:"]
            lines += [f"  {key}: {reason}" for key, reason in list(record.items())[:LISTED]]
            lines += [f"  and {len(record) - LISTED} more"] * (len(record) > LISTED)
    if result.batch_mismatch:
        lines.append(f"{result.batch_mismatch:.2e} of the tokens depend on the batch that an image was encoded in")
    return "\n".join([*lines, f"train on it: smalti train-prior {result.out} --out prior"])
