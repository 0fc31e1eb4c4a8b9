"""What the benchmarks share: rounds in turns, what a document begins with, and how results are written."""

import datetime
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import processor


@dataclass(frozen=True)
class Terms:
    """What a comparison holds for. Every document begins with it."""

    compared: str
    """What is compared with what, and by which measure."""
    number_format: str
    """In which number format each contestant computes."""
    layout: str
    """How images and kernels lie in memory."""
    threads: str
    """How many threads each contestant has."""
    tuning: str
    """Who was tuned, by whom, on which data."""
    not_shown: str
    """What the reader may not conclude."""


LABELS = {
    "compared": "What is compared",
    "number_format": "Number format",
    "layout": "Layout",
    "threads": "Threads",
    "tuning": "Tuned",
    "not_shown": "What the reader may not conclude",
}


def beginning(title: str, terms: Terms, facts: Mapping[str, Any] | None) -> list[str]:
    """The first lines of a document: its title, the terms, and where and when it was measured; None: it was not."""
    lines = [f"# {title}", ""]
    lines += [f"- **{label}.** {getattr(terms, name)}" for name, label in LABELS.items()]
    if facts is None:
        return [*lines, "- **Measured.** Not run: no GPU was at hand.", ""]
    versions = [f"{name} {number}" for name, number in facts.get("versions", {}).items()]
    measured = [facts["date"], facts["machine"], *([f"{facts['cores']} cores"] if "cores" in facts else []), *versions]
    return [*lines, f"- **Measured.** {', '.join(measured)}.", ""]


def rows_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table, a column for every key in any of the rows."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---:|" * len(columns)]
    return lines + ["| " + " | ".join(str(row.get(key, "")) for key in columns) + " |" for row in rows]


def facts(*packages: str) -> dict[str, Any]:
    """When and where this runs, with the versions of torch and of further packages."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": processor(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", *packages)},
    }


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """Of one call, on average over a few."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int, times: int = 1) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; they take turns, so that other work on the machine hits all of them."""
    measured: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            measured[name].append(seconds(call, times))
    return measured


def ratio(these: Sequence[float], those: Sequence[float]) -> float:
    """The median over the rounds of these / those."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def write(out: Path | None, result: Mapping[str, Any], text: str) -> None:
    """Write the numbers as JSON and the document beside them."""
    if out is not None:
        out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        out.with_suffix(".md").write_text(text)


def measure_rows(
    names: list[str],
    measure: Callable[[str], dict],
    table: Callable[[list[dict], dict], str],
    head: dict,
    order: list[str],
    out: Path | None,
) -> None:
    """Measure rows, write each as soon as it is there; those of another call on the same day and machine stay."""
    rows = []
    if out and out.exists():
        kept = json.loads(out.read_text())
        rows = kept["rows"] if {k: kept.get(k) for k in head} == head else []
    for row in names:
        rows = [r for r in rows if r["row"] != row] + [measure(row)]
        print(json.dumps(rows[-1], indent=1), flush=True)
        rows.sort(key=lambda r: order.index(r["row"]))
        write(out, {**head, "rows": rows}, table(rows, head))
