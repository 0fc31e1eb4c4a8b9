"""What threads that wait for each other cost: a training step alone, and beside other work on the same cores.

    python benchmarks/waiting.py [--threads 2] [--rounds 3] [--out benchmarks/waiting.json]

Each policy is a fresh process, since libgomp reads its variables once: its default (threads spin for milliseconds),
what `smalti` sets (some 20 microseconds) and no spinning at all. Beside it run as many busy processes as the row says,
on the same cores. The fair share is what one thread needs alone, over the threads, times the processes that share each
core. All of it takes about three minutes; "alone" holds only where nothing else runs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from report import Terms, beginning, facts, write

from smalti.zoo import build

POLICIES: dict[str, dict[str, str]] = {
    "libgomp's default": {},
    "smalti's": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
BUSY = (0, 1, 2)
"""How many other processes."""
SECONDS = 4.0

TERMS = Terms(
    compared="Milliseconds of a training step of `simple` on four images of 64 x 64 pixels, by how long waiting "
    "threads spin, alone and beside busy processes on the same cores; medians of rounds in turns.",
    number_format="fp32.",
    layout="Contiguous.",
    threads="In each row.",
    tuning="Nobody.",
    not_shown="Anything for OpenMP libraries other than libgomp, or for larger steps, which wait less often.",
)


def step_ms(threads: int) -> float:
    """Milliseconds of a step in this process."""
    torch.set_num_threads(threads)
    model, image = build("simple").train(), torch.rand(4, 3, 64, 64) * 2 - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    start, count = 0.0, -3  # the first steps warm up
    while count <= 0 or time.perf_counter() - start < SECONDS:
        if count == 0:
            start = time.perf_counter()
        output = model(image)
        optimizer.zero_grad()
        (F.l1_loss(output.reconstruction, image) + output.quantizer_output.loss).backward()
        optimizer.step()
        count += 1
    return (time.perf_counter() - start) / count * 1e3


def measured(policy: str, threads: int, busy: int) -> float:
    """The same in a fresh process beside busy ones."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, __file__, "--step", str(threads)]
    try:
        found = subprocess.run(command, env=environment | POLICIES[policy], capture_output=True, text=True, check=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(found.stdout)


def table(result: dict) -> str:
    """The results in Markdown."""
    lines = beginning("Threads that wait", TERMS, result)
    lines += ["| threads | busy processes | policy | step, ms | fair share, ms | ratio |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        numbers = f"{row['ms']:.1f} | {row['fair_ms']:.1f} | {row['ms'] / row['fair_ms']:.2f}"
        lines.append(f"| {row['threads']} | {row['busy']} | {row['policy']} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, nargs="+", default=list(BUSY))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", type=int, metavar="THREADS", help="used by the benchmark itself")
    options = parser.parse_args()
    if options.step:
        print(step_ms(options.step))
        return
    cores = len(os.sched_getaffinity(0))
    one = statistics.median(measured("passive", 1, 0) for _ in range(options.rounds))
    rows = []
    for busy in options.busy:
        times: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        for _ in range(options.rounds):
            for policy in POLICIES:
                times[policy].append(measured(policy, options.threads, busy))
        fair = one / min(options.threads, cores) * max(1.0, (options.threads + busy) / cores)
        for policy, values in times.items():
            row = {"policy": policy, "busy": busy, "ms": statistics.median(values), "fair_ms": fair}
            rows.append({"threads": options.threads, **row})
            print(rows[-1], flush=True)
    result = {**facts(), "rows": rows}
    write(options.out, result, table(result))


if __name__ == "__main__":
    main()
