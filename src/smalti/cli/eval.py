"""`smalti eval [RUN] DATA`: measure a tokenizer on a set of images.

The output is a table, or with `--json` one JSON object and nothing else on stdout; progress and warnings go to stderr.
Exit codes: 0 measured; 2 a mistake in the call; 3 the codebook is collapsed (only with `--fail-on-collapse`).
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
from smalti.formats.bits import bits_per_index
from smalti.jobs.evaluate import EvaluateConfig, EvaluationResult, evaluate
from smalti.ops import UsageStatistics
from smalti.zoo import DEFAULT

EXAMPLES = (
    "smalti eval photos",
    "smalti eval runs/photos photos --size 256 --json",
)
COMMON = ("size", "judges", "json", "out", "force", "fail_on_collapse", "device")
"""`--help` shows these examples and options."""

COLLAPSED = 3
"""Exit code with `--fail-on-collapse` if the codebook is collapsed."""


@dataclass(frozen=True)
class EvalCommand(EvaluateConfig):
    """Measure a tokenizer on a set of images: PSNR, SSIM, LPIPS, rFID, KID, bits per pixel, codebook usage."""

    json: bool = False
    """Print one JSON object instead of the table; nothing else goes to stdout."""
    out: Path | None = None
    """File to write the JSON object to, in addition to the output."""
    force: bool = False
    """Replace an existing file --out."""
    fail_on_collapse: bool = False
    """Exit with code 3 if the codebook is collapsed: a scale larger than 1x1 used a single code over the whole set, or
    the usage is below --min_usage."""


def run(arguments: list[str]) -> int:
    """Parse, evaluate, print; returns the exit code."""
    command = parse_config(
        EvalCommand,
        arguments,
        prog="smalti eval",
        positionals=("run", "data"),
        tokenizer=DEFAULT,
        examples=EXAMPLES,
        common=COMMON,
    )
    if command.out is None:
        result = with_progress(lambda on_images: evaluate(command, on_images))
    else:  # refuses an existing file before the work starts
        with replace_file(command.out, command.force) as path:
            result = with_progress(lambda on_images: evaluate(command, on_images))
            path.write_text(_json(result) + "\n", encoding="utf-8")
    if command.json:
        print(_json(result))
    else:
        print_tables(result, Console(markup=False, highlight=False, emoji=False))
    for warning in result.warnings:
        print(f"smalti eval: warning: {warning}", file=sys.stderr)
    if command.fail_on_collapse and result.collapse:
        for reason in result.collapse:
            print(f"smalti eval: collapsed: {reason}", file=sys.stderr)
        return COLLAPSED
    return 0


def _json(result: EvaluationResult) -> str:
    return to_json(result, reproduce_command("eval", result.config, EvaluateConfig, ("run", "data")))


def print_tables(result: EvaluationResult, console: Console) -> None:
    """Print the result: image quality and bits, then the codebook usage per scale, then problems."""
    size = "their own size" if result.size is None else f"{result.size[0]} x {result.size[1]}"
    console.print(f"{result.run}: {_count(result.quality['images'], 'image')} of {result.data} at {size}\n")
    console.print(_summary(result), "")
    console.print(_scales(result))
    for reason in result.collapse:
        console.print(f"collapsed: {reason}", style="bold red")
    for what, why in result.left_out.items():
        console.print(f"no {what}: {why}", style="dim", soft_wrap=True)
    if result.unreadable:
        console.print(f"{counted(len(result.unreadable), 'file')} could not be read:", style="yellow")
        for key, why in result.unreadable.items():
            console.print(f"  {key}: {why}", soft_wrap=True)


def _summary(result: EvaluationResult) -> Table:
    quality, bits = result.quality, bits_per_index(result.usage.vocab_size)
    exact = f"; {_count(quality['exact_images'], 'exact image')} left out" if quality["exact_images"] else ""
    baseline = _number(quality["psnr_mean_color"], ".2f", " dB")
    judged = (
        _count(quality["ssim_images"], "image") if quality["ssim_images"] else "every image is smaller than 11 x 11"
    )
    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("PSNR", _number(quality["psnr"], ".2f", " dB"), f"one mean colour per image: {baseline}{exact}")
    table.add_row("SSIM", _number(quality["ssim"], ".4f"), judged)
    for judgment in result.judgments:
        for title, number in judgment.numbers().items():
            table.add_row(title, f"{number:.4f}", f"weights {judgment.weights_sha256[:8]}")
    table.add_row("tokens per image", _number(result.tokens_per_image, ".6g"), f"{bits} bits per token")
    table.add_row("bits per pixel", _number(result.bits_per_pixel, ".4f"), "as stored: tokens x bits")
    table.add_row("entropy per pixel", _number(result.entropy_bits_per_pixel, ".4f"), "bits; estimate for ideal coder")
    return table


def _count(number: float | None, noun: str) -> str:
    return counted(int(number or 0), noun)


def _scales(result: EvaluationResult) -> Table:
    table = Table(title=f"codebook of {result.usage.vocab_size}, over the whole set", title_justify="left")
    for name in ("scale", "grid", "tokens", "used", "usage", "perplexity", "entropy (bits)"):
        table.add_column(name, justify="right")
    up_to = "" if result.size else "up to "
    for k, (grid, scale) in enumerate(zip(result.usage.grids, result.usage.scales, strict=True)):
        table.add_row(str(k), up_to + "x".join(map(str, grid)), *_usage_cells(scale))
    table.add_section()
    table.add_row("all", "", *_usage_cells(result.usage.total))
    return table


def _usage_cells(usage: UsageStatistics) -> tuple[str, ...]:
    shares = (f"{usage.usage:.1%}", f"{usage.perplexity:.1f}", f"{usage.entropy_bits:.3f}")
    return (str(usage.tokens), str(usage.used_codes), *shares)


def _number(value: float | int | None, form: str, unit: str = "") -> str:
    return "none" if value is None else f"{value:{form}}{unit}"
