"""`smalti sample PRIOR --class cat -n 16 --out samples/`: images from a trained prior."""

import sys
from dataclasses import replace

from rich.console import Console
from rich.progress import Progress

from smalti.cli.counted import counted
from smalti.cli.parsing import parse_config
from smalti.jobs.sample import SampleConfig, sample

EXAMPLES = (
    "smalti sample prior --out samples",
    "smalti sample prior --class cat -n 4 --guidance 2 --out cats",
)
COMMON = ("out", "label", "count", "seed", "tokenizer", "force", "sampling.guidance", "sampling.temperature")
"""`--help` shows these examples and options."""

ALIASES = {
    "-o": "out",
    "-n": "count",
    "--class": "label",
    "--guidance": "sampling.guidance",
    "--temperature": "sampling.temperature",
    "--top_k": "sampling.top_k",
    "--top_p": "sampling.top_p",
}


CLASS = ("--class", "--label")


def run(arguments: list[str]) -> int:
    """Parse, sample, print; returns the exit code."""
    arguments, label = _take_class(arguments)
    config = parse_config(
        SampleConfig,
        arguments,
        prog="smalti sample",
        positionals=("prior",),
        aliases=ALIASES,
        examples=EXAMPLES,
        common=COMMON,
    )
    config = config if label is None else replace(config, label=label)
    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=config.count)
        result = sample(config, lambda done, total: progress.update(task, completed=done, total=total))
    height, width = result.image_size
    of = "" if result.label is None else f" of class {result.classes[0]!r} (#{result.label})"
    print(f"{result.out}: {counted(result.images, 'image')}{of}, {width} x {height}, and grid.png")
    return 0


def _take_class(arguments: list[str]) -> tuple[list[str], str | None]:
    """Take --class out as it was typed: the parser would read "007" as a number and "#2" as a comment."""
    rest: list[str] = []
    label: str | None = None
    left = list(arguments)
    while left:
        option, given, value = left.pop(0).partition("=")
        if option in CLASS and (given or left) and (value or left[:1]) not in ("null", ["null"]):
            label = value if given else left.pop(0)
        else:
            rest.append(option + given + value)
    return rest, label
