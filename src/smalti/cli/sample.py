"""`smalti sample PRIOR --class 3 -n 16 --out samples/`: images from a trained prior."""

import sys

from rich.console import Console
from rich.progress import Progress

from smalti.cli.parsing import parse_config
from smalti.jobs.sample import SampleConfig, sample

ALIASES = {
    "-o": "out",
    "-n": "count",
    "--class": "label",
    "--guidance": "sampling.guidance",
    "--temperature": "sampling.temperature",
    "--top_k": "sampling.top_k",
    "--top_p": "sampling.top_p",
}


def run(arguments: list[str]) -> int:
    """Parse, sample, print; returns the exit code."""
    config = parse_config(SampleConfig, arguments, prog="smalti sample", positionals=("prior",), aliases=ALIASES)
    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=config.count)
        result = sample(config, lambda done, total: progress.update(task, completed=done, total=total))
    height, width = result.image_size
    print(f"{result.out}: {result.images} images of {width} x {height}, and grid.png")
    return 0
