"""`smalti compare [RUN...] DATA`: several tokenizers, and image codecs at the same file sizes, on the same images.

The output is a table, or with `--json` one JSON object and nothing else on stdout. `--out FOLDER` saves that JSON, the
picture grid and, with `--curves`, the plot of quality over bits per pixel.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from smalti.cli.counted import counted
from smalti.cli.measured import to_json, with_progress
from smalti.cli.parsing import parse_config
from smalti.cli.reproduce import reproduce_command
from smalti.data import save_image
from smalti.evaluation.comparison import Comparison, Row
from smalti.evaluation.rate_distortion import plot_rate_distortion, require_matplotlib
from smalti.formats.atomic import replace_folder
from smalti.jobs.compare import CompareConfig, compare
from smalti.zoo import DEFAULT

EXAMPLES = (
    "smalti compare photo-f8 runs/photos photos",
    "smalti compare photos --codecs '[jpeg,webp]' --curves --out compared",
)
COMMON = ("size", "judges", "codecs", "curves", "json", "out", "force")
"""`--help` shows these examples and options."""


@dataclass(frozen=True)
class CompareCommand(CompareConfig):
    """Compare tokenizers and image codecs on the same images: quality, size, speed."""

    json: bool = False
    """Print one JSON object instead of the table; nothing else goes to stdout."""
    out: Path | None = None
    """Folder to write: compare.json, grid.png (the originals, then one labelled row per line of the table) and, with
    --curves, rate_distortion.png."""
    force: bool = False
    """Replace an existing folder --out."""


def run(arguments: list[str]) -> int:
    """Parse, compare, print; returns the exit code."""
    command = parse_config(
        CompareCommand,
        arguments,
        prog="smalti compare",
        positionals=("runs", "data"),
        tokenizer=DEFAULT,
        examples=EXAMPLES,
        common=COMMON,
    )
    if command.curves and command.out is not None:
        require_matplotlib()
    if command.out is None:
        comparison = with_progress(lambda on_images: compare(command, on_images))
    else:  # refuses an existing folder before the work starts
        with replace_folder(command.out, command.force) as folder:
            comparison = with_progress(lambda on_images: compare(command, on_images))
            (folder / "compare.json").write_text(_json(comparison) + "\n", encoding="utf-8")
            save_image(folder / "grid.png", comparison.picture)
            if command.curves:
                plot_rate_distortion(comparison, folder / "rate_distortion.png")
    if command.json:
        print(_json(comparison))
    else:
        print_table(comparison)
    for warning in comparison.warnings:
        print(f"smalti compare: warning: {warning}", file=sys.stderr)
    return 0


def _json(comparison: Comparison) -> str:
    return to_json(comparison, reproduce_command("compare", comparison.config, CompareConfig, ("runs", "data")))


def print_table(comparison: Comparison) -> None:
    """Print the comparison as a table of full width: a folded table cannot be read."""
    console = Console(markup=False, highlight=False, emoji=False)
    table = _table(comparison)
    console.width = max(
        console.width, Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    )
    size = comparison.protocol.size
    at = "their own size" if size is None else f"{size[0]} x {size[1]}"
    console.print(f"{counted(comparison.images, 'image')} of {comparison.data} at {at}\n")
    console.print(table)
    for what, why in comparison.left_out.items():
        console.print(f"no {what}: {why}", style="dim", soft_wrap=True)
    for key, why in comparison.unreadable.items():
        console.print(f"not read: {key}: {why}", style="yellow", soft_wrap=True)


def _table(comparison: Comparison) -> Table:
    """The table, one line per row; a metric network has a column if it gave a number."""
    lines = [_cells(row) for row in comparison.rows]
    table = Table()
    for title in lines[0]:
        above, _, below = title.partition(" on ") if " on " in title else title.partition(" ")
        justify: Literal["left", "right"] = "left" if title == "tokenizer" else "right"
        table.add_column(f"{above}\n{below}", justify=justify, no_wrap=True)
    for line in lines:
        table.add_row(*(line.get(title, "") for title in lines[0]))
    return table


def _cells(row: Row) -> dict[str, str]:
    """Title → text. The first rows are tokenizers and have every column; codecs leave some cells empty."""
    judged = {title: f"{number:.4f}" for judgment in row.judgments for title, number in judgment.numbers().items()}
    cells = {
        "tokenizer": row.name,
        "PSNR": _number(row.quality["psnr"], ".2f"),
        "SSIM": _number(row.quality["ssim"], ".4f"),
        **judged,
        "file bytes": f"{row.file_bytes:.0f}",
        "file bits/px": f"{row.file_bits_per_pixel:.4f}",
    }
    if row.costs is None:
        return cells
    return {
        **cells,
        "token bits/px": f"{row.costs.bits_per_pixel:.4f}",
        "entropy bits/px": f"{row.costs.entropy_bits_per_pixel:.4f}",
        "tokens": f"{row.costs.tokens_per_image:.6g}",
        "usage": f"{row.costs.usage.total.usage:.1%}",
        "encode img/s": f"{row.costs.encode_images_per_second:.1f}",
        "decode img/s": f"{row.costs.decode_images_per_second:.1f}",
        "parameters": f"{row.costs.parameters / 1e6:.2f} M",
    }


def _number(value: float | int | None, form: str) -> str:
    return "none" if value is None else f"{value:{form}}"
