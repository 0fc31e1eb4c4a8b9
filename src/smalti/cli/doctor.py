"""`smalti doctor`: checks that a device computes the tokens and pixels of the CPU, and lists what is installed.

The output is a report, or with `--json` one JSON object and nothing else on stdout. Exit codes: 0 healthy; 1 the device
or the CPU is wrong in fp32; 2 a mistake in the call.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from smalti.cli.measured import json_text
from smalti.cli.parsing import parse_config
from smalti.jobs.doctor import Diagnosis, DoctorConfig, doctor

EXAMPLES = (
    "smalti doctor",
    "smalti doctor --device cuda --json",
)
"""`--help` shows these examples."""

WRONG = 1
"""Exit code if a device is wrong in fp32."""


@dataclass(frozen=True)
class DoctorCommand(DoctorConfig):
    """Check that a device computes the same tokens and pixels as the CPU, and list what is installed."""

    json: bool = False
    """Print one JSON object instead of the report; nothing else goes to stdout."""


def run(arguments: list[str]) -> int:
    """Parse, check, print; returns the exit code."""
    command = parse_config(DoctorCommand, arguments, prog="smalti doctor", examples=EXAMPLES)
    diagnosis = doctor(command)
    if command.json:
        print(json_text(diagnosis.to_dict(), indent=2))
    else:
        print_report(diagnosis, Console(markup=False, highlight=False, emoji=False, soft_wrap=True))
    return WRONG if diagnosis.faults else 0


def print_report(diagnosis: Diagnosis, console: Console) -> None:
    """Print what is installed, then the table of the checks, then the verdict."""
    console.print("\n".join(_installed(diagnosis)))
    console.print(f"\n{diagnosis.picture}, encoded and decoded, beside torch's plain kernels on the CPU in fp32:\n")
    table = _table(diagnosis)
    widest = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.width = max(console.width, widest)
    console.print(table)
    for check in diagnosis.checks:
        if check.fault:
            console.print(
                f"{check.device} in {check.number_format}, {check.tokenizer}: {check.fault}", style="bold red"
            )
    wrong = sorted({check.device for check in diagnosis.faults})
    healthy = f"{diagnosis.device} is healthy: it computes in fp32 what the reference computes"
    console.print(f"{' and '.join(wrong)}: wrong results in fp32, do not use it" if wrong else healthy)


def _installed(diagnosis: Diagnosis) -> Iterator[str]:
    """Lines on versions, code search, weights and extras."""
    yield f"smalti {diagnosis.smalti}, " + ", ".join(f"{name} {number}" for name, number in diagnosis.versions.items())
    yield f"device: {diagnosis.device} ({diagnosis.device_name})"
    for backend, fault in diagnosis.backends.items():
        kernel = f" ({diagnosis.kernel} kernel)" if backend == "native" and diagnosis.kernel else ""
        yield f"code search, {backend}{kernel}: {fault or 'checked'}"
    for name, place in diagnosis.weights.items():
        yield f"weights of {name}: {place or 'not found, see --download of smalti eval and smalti train'}"
    yield "extras installed: " + (
        ", ".join(extra for extra, missing in diagnosis.extras.items() if not missing) or "none"
    )
    for extra, missing in diagnosis.extras.items():
        if missing:
            yield f"extra {extra} is not installed, it lacks {', '.join(missing)}"


def _table(diagnosis: Diagnosis) -> Table:
    """One line per check."""
    table = Table(box=None)
    for title in ("device", "tokenizer", "format"):
        table.add_column(title, no_wrap=True)
    for title in ("tokens\ndiffer", "close\ncalls", "values\ndiffer", "largest\nof 255", "encode\nms", "decode\nms"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for check in diagnosis.checks:
        table.add_row(
            check.device,
            check.tokenizer,
            check.number_format,
            f"{check.different_tokens} of {check.tokens}",
            str(check.close_calls),
            f"{check.different_values / check.values:.2%}" if check.values else "none",
            str(check.largest_difference),
            f"{check.encode_seconds * 1e3:.1f}",
            f"{check.decode_seconds * 1e3:.1f}",
            "wrong" if check.fault else "ok",
        )
    return table
