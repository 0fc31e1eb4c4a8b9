"""Nearest-code search side by side: our native back end, faiss and vector-quantize-pytorch, on the CPU.

    python benchmarks/search.py [--rounds 9] [--slow-rounds 1] [--out search.json]

Each round times every contestant one after the other on the same numbers, the best of a few calls each; a row's ratio
is the median over the rounds of ours / theirs, so that whatever else the machine does hits both sides. `packing` is our
time with a codebook never seen before, `ours` with one seen before (its fingerprint is taken in both).
"""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import time
from pathlib import Path

import faiss
import torch
from vector_quantize_pytorch import VectorQuantize

from smalti.ops import native

ROWS = ((1024, 8), (16384, 8), (4096, 32), (1024, 64), (8192, 64), (16384, 256))
N = 16384
THREADS = 2


def best_of(call, calls):
    """Milliseconds of the fastest of some calls; the pause lets the idle threads of the one before go to sleep."""
    time.sleep(0.02)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return min(times)


def compare(K, D, rounds, slow_rounds):
    generator = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(N, D, generator=generator), torch.randn(K, D, generator=generator)
    index = faiss.IndexFlatL2(D)
    index.add(codebook.numpy())
    peer = VectorQuantize(dim=D, codebook_size=K).eval()
    peer._codebook.embed.data.copy_(codebook[None])

    def packing():
        native._cache._parts.clear()
        native.nearest(z, codebook)

    contestants = {
        "ours": lambda: native.nearest(z, codebook),
        "packing": packing,
        "faiss": lambda: index.search(z.numpy(), 1),
    }
    calls = max(1, min(8, int(2e9 / (N * K * D))))
    times = {name: [] for name in (*contestants, "peer")}
    for _ in range(rounds):
        for name, call in contestants.items():
            times[name].append(best_of(call, calls))
    with torch.no_grad():
        for _ in range(slow_rounds):
            times["peer"].append(best_of(lambda: peer(z[None]), 1))
    agree = (
        (torch.from_numpy(index.search(z.numpy(), 1)[1][:, 0]) == native.nearest(z, codebook)).double().mean().item()
    )
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[name], times["faiss"], strict=True))
        for name in ("ours", "packing")
    }
    least = {name: min(values) for name, values in times.items() if values}
    return {
        "K": K, "D": D, "ms": {name: round(ms, 3) for name, ms in least.items()},
        "ratio_median": round(ratios["ours"], 3), "ratio_median_packing": round(ratios["packing"], 3),
        "ratio_least": round(least["ours"] / least["faiss"], 3),
        "ratio_least_packing": round(least["packing"] / least["faiss"], 3),
        "times_faster_than_peer": round(least["peer"] / least["ours"], 1) if "peer" in least else None,
        "gflops": round(2e-6 * N * K * D / least["ours"]), "agree_with_faiss": agree,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slow-rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    print(
        f"N = {N}, {THREADS} threads, float32, milliseconds (least); ratios to faiss: median of rounds (ratio of the least times)"  # noqa: E501
    )
    print(
        f"{'K, D':>11} {'ours':>8} {'packing':>8} {'faiss':>8} {'peer':>8}   {'ours/faiss':>15} {'packing/faiss':>15} {'x peer':>7} {'GF/s':>5}"  # noqa: E501
    )
    rows = []
    for K, D in ROWS:
        row = compare(K, D, options.rounds, options.slow_rounds)
        rows.append(row)
        ms = row["ms"]
        print(
            f"{K:>6}, {D:>3} {ms['ours']:>8.2f} {ms['packing']:>8.2f} {ms['faiss']:>8.2f} {ms.get('peer', math.nan):>8.1f}   "  # noqa: E501
            f"{row['ratio_median']:>6.2f} ({row['ratio_least']:>4.2f})   {row['ratio_median_packing']:>6.2f} ({row['ratio_least_packing']:>4.2f})  "  # noqa: E501
            f"{row['times_faster_than_peer'] or math.nan:>7.0f} {row['gflops']:>5}",
            flush=True,
        )
    means = {
        key: round(statistics.geometric_mean(row[key] for row in rows), 3) for key in rows[0] if key.startswith("ratio")
    }
    print("geometric mean", means)
    if options.out:
        machine = {
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
        }
        result = {
            "date": datetime.date.today().isoformat(),
            **machine,
            "N": N,
            "threads": THREADS,
            "rows": rows,
            "means": means,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
