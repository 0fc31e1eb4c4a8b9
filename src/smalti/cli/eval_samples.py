"""`smalti eval-samples SAMPLES DATA`: measure the samples of a generator against reference images.

The output is a table, or with `--json` one JSON object and nothing else on stdout.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from smalti.cli.counted import counted
from smalti.cli.measured import to_json, with_progress
from smalti.cli.parsing import parse_config
from smalti.cli.reproduce import reproduce_command
from smalti.formats.atomic import replace_file
from smalti.jobs.evaluate_samples import EvaluateSamplesConfig, SamplesResult, evaluate_samples

EXAMPLES = (
    "smalti eval-samples samples photos",
    "smalti eval-samples samples photos --size 64 --json",
)
COMMON = ("size", "judges", "json", "out", "force", "device")
"""`--help` shows these examples and options."""


@dataclass(frozen=True)
class EvalSamplesCommand(EvaluateSamplesConfig):
    """Measure the samples of a generator against reference images: gFID, KID, Inception Score."""

    json: bool = False
    """Print one JSON object instead of the table; nothing else goes to stdout."""
    out: Path | None = None
    """File to write the JSON object to, in addition to the output."""
    force: bool = False
    """Replace an existing file --out."""


def run(arguments: list[str]) -> int:
    """Parse, evaluate, print; returns the exit code."""
    command = parse_config(
        EvalSamplesCommand,
        arguments,
        prog="smalti eval-samples",
        positionals=("samples", "data"),
        examples=EXAMPLES,
        common=COMMON,
    )
    if command.out is None:
        result = with_progress(lambda on_images: evaluate_samples(command, on_images))
    else:  # refuses an existing file before the work starts
        with replace_file(command.out, command.force) as path:
            result = with_progress(lambda on_images: evaluate_samples(command, on_images))
            path.write_text(_json(result) + "\n", encoding="utf-8")
    if command.json:
        print(_json(result))
    else:
        print_table(result, Console(markup=False, highlight=False, emoji=False))
    for warning in result.warnings:
        print(f"smalti eval-samples: warning: {warning}", file=sys.stderr)
    return 0


def _json(result: SamplesResult) -> str:
    return to_json(result, reproduce_command("eval-samples", result.config, EvaluateSamplesConfig, ("samples", "data")))


def print_table(result: SamplesResult, console: Console) -> None:
    """Print the result: what was compared, the networks' numbers, what is missing."""
    size = "their own size" if result.protocol.size is None else "{} x {}".format(*result.protocol.size)
    console.print(
        f"{result.samples}: {counted(result.samples_count, 'sample')} against {counted(result.images, 'image')} of "
        f"{result.data} at {size}\n"
    )
    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for judgment in result.judgments:
        for title, number in judgment.numbers().items():
            table.add_row(title, f"{number:.4f}", f"weights {judgment.weights_sha256[:8]}")
    console.print(table)
    for what, why in result.left_out.items():
        console.print(f"no {what}: {why}", style="dim", soft_wrap=True)
    for key, why in result.unreadable.items():
        console.print(f"could not be read: {key}: {why}", soft_wrap=True)
