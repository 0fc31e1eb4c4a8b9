"""What it costs to start a command: processor time of one small picture, beside `import torch` alone.

    python benchmarks/starting.py [--rounds 9] [--out benchmarks/starting.json]

Every run is a fresh process; all of them take turns. The first round only fills caches, that of compiled modules too,
and is not counted.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from report import Terms, beginning, facts, rows_table, write

from smalti.data import open_images

TERMS = Terms(
    compared="Seconds of processor time (all threads, user and system) of a fresh process: `import torch` alone, with "
    "and without garbage collection, which commands pause during imports; and commands with `photo-f8` on one "
    "picture of 128 x 96 pixels, or on a missing path. Medians of rounds in turns; `beyond torch` is the median over "
    "the rounds of the difference to `import torch`.",
    number_format="The command's default.",
    layout="The command's default.",
    threads="The command's default.",
    tuning="Nobody.",
    not_shown="How long a command takes on many or large pictures.",
)


def processor_seconds(command: list[str], code: int) -> float:
    """Of a process that must end with this exit code."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert found.returncode == code, found.stderr.decode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(folder: Path) -> dict[str, tuple[list[str], int]]:
    """Name → command and its exit code."""
    smalti = [str(Path(sys.executable).parent / "smalti")]
    picture, tokens, out = (str(folder / name) for name in ("in.png", "in.tokens", "out.png"))
    return {
        "import torch": ([sys.executable, "-c", "import torch"], 0),
        "import torch, no garbage collection": ([sys.executable, "-c", "import gc; gc.disable(); import torch"], 0),
        "encode": ([*smalti, "encode", picture, "--out", tokens, "--force"], 0),
        "decode": ([*smalti, "decode", tokens, out, "--force"], 0),
        "reconstruct": ([*smalti, "reconstruct", picture, out, "--force"], 0),
        "encode, wrong path": ([*smalti, "encode", str(folder / "no.png"), "--out", tokens, "--force"], 2),
    }


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray(open_images("embedded").load(0)[:96, :128]).save(folder / "in.png")
        runs = commands(folder)
        times: dict[str, list[float]] = {command: [] for command in runs}
        for number in range(options.rounds + 1):
            for command, (line, code) in runs.items():
                seconds = processor_seconds(line, code)
                times[command] += [seconds] * (number > 0)
    rows = []
    for command, values in times.items():
        beyond = statistics.median(value - torch for value, torch in zip(values, times["import torch"], strict=True))
        row = {"process": command, "seconds": round(statistics.median(values), 2), "beyond torch": round(beyond, 2)}
        rows.append(row)
        print(row, flush=True)
    result = {**facts("smalti"), "rows": rows}
    lines = [*beginning("Starting a command", TERMS, result), *rows_table(rows)]
    write(options.out, result, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
