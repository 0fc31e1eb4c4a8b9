"""Nearest-code search side by side with its peers, on the CPU or on a GPU.

    python benchmarks/search.py [--device cpu] [--rounds 7] [--layer-rounds 3] [--out benchmarks/search.json]

A round times every contestant one after the other on the same numbers, the best of a few calls each. A ratio is the
median over the rounds of the two times of one round, so that whatever else the machine does hits both sides; times are
the least of all rounds. The table is printed and, with --out, written as JSON and, beside it, as Markdown.

Contestants on the CPU: `ours` with a codebook seen before (its fingerprint is taken in each call), `first`, the same
with one never seen, `faiss` (IndexFlatL2, the codes already added), `torch` (|c|² / 2 - z · c by `addmm`, |c|² taken
before, then `argmin`) and `layer` (vector-quantize-pytorch's whole layer in eval mode: it searches, looks up the codes
and passes them straight through). On a GPU: `ours`, `fast` (TF32), `torch` and `layer`; `... MB` is what a call
allocates at its peak beside its inputs.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from report import Terms, beginning, facts, rows_table, write
from torch import Tensor

from smalti.ops import native, nearest_code

Calls = dict[str, Callable[[], Any]]

THREADS = 2
CPU_ROWS = [(16384, K, D) for K, D in ((1024, 8), (16384, 8), (4096, 32), (1024, 64), (8192, 64), (16384, 256))]
LARGE_ROW = (16384, 262144, 8)
GPU_ROWS = [(262144, 16384, D) for D in (8, 32, 64, 256)]


def random_problem(N: int, K: int, D: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(N, D, generator=generator), torch.randn(K, D, generator=generator)
    return z.to(device), codebook.to(device)


# ---- contestants ---------------------------------------------------------------------------------------------------


def faiss_call(z: Tensor, codebook: Tensor) -> Callable[[], Any]:
    import faiss  # has no wheel for GPUs

    faiss.omp_set_num_threads(THREADS)
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    return lambda: index.search(z.numpy(), 1)


def layer_call(z: Tensor, codebook: Tensor) -> Callable[[], Any]:
    from vector_quantize_pytorch import VectorQuantize

    K, D = codebook.shape
    layer = VectorQuantize(dim=D, codebook_size=K).to(z.device).eval()
    layer._codebook.embed.data.copy_(codebook[None])
    return lambda: layer(z[None])


def torch_call(z: Tensor, codebook: Tensor) -> Callable[[], Any]:
    half_squares = codebook.square().sum(1) / 2
    return lambda: torch.addmm(half_squares, z, codebook.T, alpha=-1).argmin(1)


def cpu_calls(z: Tensor, codebook: Tensor) -> Calls:
    def first() -> None:
        native._cache._parts.clear()
        nearest_code(z, codebook)

    return {
        "ours": lambda: nearest_code(z, codebook),
        "first": first,
        "faiss": faiss_call(z, codebook),
        "torch": torch_call(z, codebook),
    }


def gpu_calls(z: Tensor, codebook: Tensor) -> Calls:
    return {
        "ours": lambda: nearest_code(z, codebook, backend="triton"),
        "fast": lambda: nearest_code(z, codebook, backend="triton", precision="fast"),
        "torch": torch_call(z, codebook),
    }


# ---- measuring -----------------------------------------------------------------------------------------------------


def best_of(call: Callable[[], Any], calls: int) -> float:
    """Milliseconds of the fastest of some calls; the pause lets the idle threads of the one before go to sleep."""
    time.sleep(0.02)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return min(times)


def time_row(
    calls: Calls, layer: Callable[[], Any] | None, work: int, rounds: int, layer_rounds: int
) -> dict[str, Any]:
    """Least times in ms, and ratios: medians over the rounds."""
    for call in calls.values():
        call()  # compiles, packs, fills caches
    many = max(1, min(8, int(2e9 / work)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    layer_times, speed_ups = [], []
    for number in range(rounds):
        for name, call in calls.items():
            times[name].append(best_of(call, many))
        if layer is not None and number < layer_rounds:
            layer_times.append(best_of(layer, 1))
            speed_ups.append(layer_times[-1] / times["ours"][-1])
    row: dict[str, Any] = {f"{name} ms": round(min(values), 2) for name, values in times.items()}
    if layer_times:
        row |= {"layer ms": round(min(layer_times), 1), "layer / ours": round(statistics.median(speed_ups), 1)}
    if "torch" in times:
        pairs = zip(times["torch"], times["ours"], strict=True)
        row["torch / ours"] = round(statistics.median(theirs / ours for theirs, ours in pairs), 2)
    if "faiss" in times:
        for name in ("ours", "first"):
            ratios = [ours / theirs for ours, theirs in zip(times[name], times["faiss"], strict=True)]
            row[f"{name} / faiss"] = round(statistics.median(ratios), 2)
    row["GFLOP/s"] = round(2e-6 * work / min(times["ours"]))
    return row


def cpu_peak(name: str, size: tuple[int, int, int]) -> float:
    """MB that one search adds to a fresh process beside its inputs, as Linux counts; faiss copies the codes."""
    torch.set_num_threads(THREADS)
    search = nearest_code if name == "ours" else lambda z, codebook: faiss_call(z, codebook)()
    problem = random_problem(*size, "cpu")
    search(*random_problem(100, 100, 3, "cpu"))  # loads libraries, starts threads
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    search(*problem)
    return round((status("VmHWM") - before) / 1e3, 1)


def status(key: str) -> int:
    """Kilobytes of this process, as Linux tells them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def gpu_peak(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)


# ---- rows ----------------------------------------------------------------------------------------------------------


def cpu_row(size: tuple[int, int, int], rounds: int, layer_rounds: int) -> dict[str, Any]:
    z, codebook = random_problem(*size, "cpu")
    layer = layer_call(z, codebook) if layer_rounds else None
    calls = cpu_calls(z, codebook)
    if not layer_rounds:
        del calls["torch"]
    row = time_row(calls, layer, size[0] * size[1] * size[2], rounds, layer_rounds)
    return {"N": size[0], "K": size[1], "D": size[2], **row}


def large_row(rounds: int) -> dict[str, Any]:
    """So many codes that a matrix of distances (17 GB, which `torch` and `layer` make) does not fit."""
    row = cpu_row(LARGE_ROW, min(rounds, 3), layer_rounds=0)
    for name in ("ours", "faiss"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            row[f"{name} MB"] = process.submit(cpu_peak, name, LARGE_ROW).result()
    return row


def gpu_row(size: tuple[int, int, int], rounds: int, layer_rounds: int) -> dict[str, Any]:
    z, codebook = random_problem(*size, "cuda")
    calls, layer = gpu_calls(z, codebook), layer_call(z, codebook)
    memory = {f"{name} MB": gpu_peak(call) for name, call in calls.items()}
    try:
        memory["layer MB"] = gpu_peak(layer)
    except torch.OutOfMemoryError:
        layer_rounds = 0
    row = time_row(calls, layer, size[0] * size[1] * size[2], rounds, layer_rounds)
    return {"N": size[0], "K": size[1], "D": size[2], **row, **memory}


# ---- the report ----------------------------------------------------------------------------------------------------


TERMS = Terms(
    compared="Milliseconds of one search for the nearest of K codes for N vectors of D numbers, the least over the "
    "rounds, and medians of ratios. `ours`, `faiss` and `torch` search and give indices; `layer` is all that "
    "vector-quantize-pytorch's layer does, so its column says how long its users wait, not how fast it searches.",
    number_format="fp32 in and out for everybody. `ours` is exact: it may multiply in bf16 where its kernel does, and "
    "decides close calls in fp32 and fp64. faiss, `torch` and `layer` compute in fp32 and may differ in the last "
    "digits; `fast` in TF32.",
    layout="Vectors and codes are contiguous rows.",
    threads=f"{THREADS} for everybody.",
    tuning="Nobody for these numbers; our kernels were written with these sizes in view.",
    not_shown="How much faster training or encoding becomes: there the search is one part of several. Nor anything "
    "about approximate indexes, which faiss has and which are not compared.",
)


def machine(device: str) -> dict[str, Any]:
    names = ("faiss-cpu", "vector-quantize-pytorch") if device == "cpu" else ("triton", "vector-quantize-pytorch")
    name = {} if device == "cpu" else {"machine": torch.cuda.get_device_name()}
    kernel = native._native.kernels()[0] if device == "cpu" else "triton"
    return {**facts(*names), **name, "kernel": kernel, "load": round(os.getloadavg()[0], 1)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the bars speak of: worst rows and the geometric mean, where the row has the number."""
    result: dict[str, Any] = {}
    for key in ("ours / faiss", "first / faiss"):
        if ratios := [row[key] for row in rows if key in row]:
            result |= {f"{key} worst": max(ratios), f"{key} mean": round(statistics.geometric_mean(ratios), 2)}
    for key in ("torch / ours", "layer / ours"):
        if speed_ups := [row[key] for row in rows if key in row]:
            result[f"{key} least"] = min(speed_ups)
    return result


def markdown(result: dict[str, Any]) -> str:
    found = {"kernel": result["machine"]["kernel"], "load": result["machine"]["load"], **result["summary"]}
    head = beginning("Code search", TERMS, result["machine"])
    notes = [f"- {key}: {value}" for key, value in found.items()]
    return "\n".join([*head, *rows_table(result["rows"]), "", *notes]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layer-rounds", type=int, default=3, help="rounds in which the slow layer takes part")
    parser.add_argument("--out", type=Path, help="JSON file to write; a Markdown table is put beside it")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.device == "cpu":
        about = machine("cpu")
        rows = [cpu_row(size, options.rounds, options.layer_rounds) for size in CPU_ROWS]
        means = summary(rows)  # of the rows that every contestant has
        rows.append(large_row(options.rounds))
    else:
        about = machine("cuda")
        rows = [gpu_row(size, options.rounds, options.layer_rounds) for size in GPU_ROWS]
        means = summary(rows)
    result = {"machine": about, "rows": rows, "summary": means}
    print(markdown(result))
    write(options.out, result, markdown(result))


if __name__ == "__main__":
    with torch.no_grad():
        main()
