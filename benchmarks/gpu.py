"""The check of a machine with a GPU: the tests that need one, and how fast search, training and sampling are on it.

    python benchmarks/gpu.py [--out benchmarks/gpu.json]

Each part is a process of its own with a limit in seconds; all limits together stay under eight minutes. A part that
reaches its limit ends there, and the rows that it has measured stay.

- tests: those of exact search, of the Triton kernels, of steps that never wait for the GPU and of copies to it.
- doctor: what `smalti doctor` finds: tokens and pixels beside those of the CPU, in each number format.
- search: the nearest of K codes for N vectors, ours and torch's `addmm` with `argmin`.
- train: a training step as `smalti train` makes it, and an encoding.
- sample: token sequences as `smalti sample` draws them, without the decoder.

A time is that of several calls between two synchronizations of the GPU, the median over the rounds.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from report import Terms, beginning, facts, in_turns, rows_table, write
from sampling import SETTINGS, make_prior
from sampling import ours as sampler
from search import random_problem, torch_call
from train import Setting, pictures
from train import ours as trainer

from smalti.jobs.doctor import DoctorConfig, doctor
from smalti.ops import nearest_code
from smalti.ops.device import DTYPES
from smalti.training import choose_runtime
from smalti.zoo import build

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]

TESTS = (
    "tests/ops/test_exact.py", "tests/ops/test_triton.py", "tests/training/test_no_waiting.py",
    "tests/training/test_runtime.py",
)  # fmt: skip
SEARCHES = ((65536, 16384, 8), (65536, 16384, 32), (65536, 8192, 256))
"""N, K, D of each row."""
STEPS = (("photo-f8", 256, 32), ("photo-pyramid", 256, 32), ("vqgan-f8", 256, 4))
"""Model, pixels a side, images a step."""
SAMPLES = (("next-scale-small", "photo-pyramid", 8), ("var-d16", "var-f16", 8))
"""Prior, tokenizer, images at once."""
WARM_UP, TIMES, ROUNDS = 6, 4, 3
"""Steps in which codebook and algorithms start, calls between two synchronizations, and how often these are timed."""


def medians(calls: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Seconds of a call of each, taking turns."""

    def several(call: Callable[[], object]) -> None:
        for _ in range(TIMES):
            call()
        if device == "cuda":
            torch.cuda.synchronize()

    rounds = {name: lambda call=call: several(call) for name, call in calls.items()}
    for call in rounds.values():
        call()
    return {name: statistics.median(times) / TIMES for name, times in in_turns(rounds, ROUNDS).items()}


@torch.no_grad()
def search_rows(device: str, sizes: Sequence[tuple[int, int, int]] = SEARCHES) -> Iterator[Row]:
    """Milliseconds of ours and torch's, and how many vectors get the same code."""
    for N, K, D in sizes:
        z, codebook = random_problem(N, K, D, device)
        calls = {"smalti": lambda z=z, c=codebook: nearest_code(z, c), "torch": torch_call(z, codebook)}
        same = (calls["smalti"]() == calls["torch"]()).double().mean().item()
        times = medians(calls, device)
        row = {"N": N, "K": K, "D": D, "format": "fp32"}
        row |= {f"{name} ms": round(seconds * 1e3, 3) for name, seconds in times.items()}
        yield row | {"torch / smalti": round(times["torch"] / times["smalti"], 2), "same codes": round(same, 6)}


def train_rows(
    device: str, steps: Sequence[tuple[str, int, int]] = STEPS, formats: Sequence[str] = ("fp32", "bf16")
) -> Iterator[Row]:
    """Images a second of a step and of an encoding."""
    for model, side, batch in steps:
        for name in formats:
            torch.manual_seed(0)
            setting = Setting(DTYPES[name], torch.channels_last)
            with choose_runtime(device).fast_products():
                contestant = trainer(build(model), pictures(side, batch), setting, device)
                for _ in range(WARM_UP):
                    contestant.step()
                times = medians({"train": contestant.step, "encode": contestant.encode}, device)
            row = {"model": model, "pixels": side, "batch": batch, "format": name}
            yield row | {f"{what}, images/s": round(batch / seconds, 1) for what, seconds in times.items()}
            del contestant


@torch.no_grad()
def sample_rows(device: str, samples: Sequence[tuple[str, str, int]] = SAMPLES, format: str = "bf16") -> Iterator[Row]:
    """Images a second of drawing all tokens, with guidance."""
    for name, tokenizer, batch in samples:
        prior = make_prior(name, build(tokenizer).eval()).to(device)
        prior.cast(DTYPES[format])
        seconds = medians({"sample": sampler(prior, batch)}, device)["sample"]
        row = {"prior": name, "tokens": prior.layout.num_tokens, "batch": batch, "format": format}
        yield row | {"guidance": SETTINGS.guidance, "s": round(seconds, 4), "images/s": round(batch / seconds, 2)}
        del prior


def pytest_rows(device: str) -> Iterator[Row]:
    """One row: pytest's last line. `device` is there for the sake of the other parts: tests find their own."""
    command = [sys.executable, "-m", "pytest", "--quiet", *TESTS]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip().splitlines()
    yield {"tests": ", ".join(TESTS), "result": lines[-1] if lines else "no output"}


def doctor_rows(device: str) -> Iterator[Row]:
    """A row for each tokenizer and number format: what differs from the CPU in fp32."""
    for check in doctor(DoctorConfig(device)).checks:
        row = {"device": check.device, "tokenizer": check.tokenizer, "format": check.number_format}
        row |= {"tokens": check.tokens, "different": check.different_tokens, "close calls": check.close_calls}
        yield row | {"largest difference of 255": check.largest_difference, "fault": check.fault or "none"}


PARTS: dict[str, tuple[Callable[[str], Iterator[Row]], int]] = {
    "tests": (pytest_rows, 150),
    "doctor": (doctor_rows, 25),
    "search": (search_rows, 60),
    "train": (train_rows, 150),
    "sample": (sample_rows, 90),
}
"""What yields the rows of a part, and the seconds that it may take."""


def limited(part: str) -> tuple[list[Row], str]:
    """The rows of a part measured in a process of its own, and in words why there are no more."""
    seconds, why = PARTS[part][1], ""
    command = [sys.executable, __file__, "--part", part]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=out, stderr=complaints, start_new_session=True)
        try:
            code = process.wait(seconds)
            complaints.seek(0)
            lines = complaints.read().strip().splitlines()
            if code:
                why = f"Failed: {lines[-1] if lines else f'exit code {code}'}"
        except subprocess.TimeoutExpired:
            why = f"Ended at its limit of {seconds} s."
        finally:  # with pytest, which it may have started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        whole = [line for line in out.read().splitlines() if line.startswith("{") and line.endswith("}")]
        return [json.loads(line) for line in whole], why


TERMS = Terms(
    compared="Doctor: tokens and pixels of a picture beside those of the CPU. Code search: milliseconds of smalti's "
    "and of torch's `addmm` with `argmin`, and the share of vectors to which both give the same code. Training and "
    "encoding: images a second. Sampling: seconds a batch, without the decoder. Each is the median over rounds of "
    "calls between two synchronizations of the GPU. `make check-gpu` repeats it; `benchmarks/gpu.py` says how.",
    number_format="In each row. Search: fp32 in, exact by smalti; torch computes in fp32 and may differ in the last "
    "digits. Training: networks by autocast, quantizers in fp32, matrix products of fp32 by TF32, as `smalti train` "
    "does. Sampling: weights and cache in the format of the row.",
    layout="Images and kernels channels last; vectors, codes and tokens are contiguous rows.",
    threads="One GPU; on the CPU torch's default.",
    tuning="Nobody. Weights are random.",
    not_shown="How fast anything is on another GPU, with another batch, or with a loader that must read files first.",
)


def document(result: dict[str, Any] | None) -> str:
    """The results in Markdown; None: that there are none."""
    lines = beginning("On a GPU", TERMS, None if result is None else result["facts"])
    for part, (rows, why) in ({} if result is None else result["parts"]).items():
        lines += [f"## {part}", "", *(rows_table(rows) if rows else ["No result."]), "", *([why, ""] if why else [])]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write; a Markdown document is put beside it")
    parser.add_argument("--part", choices=PARTS, help="used by the benchmark itself")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu: got a machine or a build of torch without CUDA, expected one NVIDIA GPU")
    if options.part:
        for row in PARTS[options.part][0]("cuda"):
            print(json.dumps(row), flush=True)
        return
    about = {**facts("triton"), "machine": torch.cuda.get_device_name()}
    result = {"facts": about, "parts": {part: limited(part) for part in PARTS}}
    print(document(result))
    write(options.out, result, document(result))


if __name__ == "__main__":
    main()
