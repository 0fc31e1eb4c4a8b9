"""What the training loop does as one process or as one of two; `clean_interpreter.py` runs it.

    RANK=r WORLD_SIZE=w ... python many_process_steps.py OUT

OUT/RANK.pt gets what each process ended with.
"""

import sys
from pathlib import Path

import torch

from smalti.data import Batch
from smalti.distributed import any_process, in_all, on_main, process_count, process_rank
from smalti.losses import LossTable
from smalti.quantizers import DeadCodeRevival, KMeansInit, MultiScaleQuantizer, VectorQuantizer
from smalti.tokenizers import SimpleVQVAE
from smalti.training import (
    DataError,
    NonFiniteLossError,
    OptimizationConfig,
    Runtime,
    SkippedStep,
    TokenizerObjective,
    choose_runtime,
    leave_processes,
    start_state,
    tokenizer_line,
    train_steps,
)
from smalti.training.runtime import join_processes

BATCH = 8


def model() -> SimpleVQVAE:
    torch.manual_seed(0)
    codebook = VectorQuantizer(16, 4, init=KMeansInit(2, 3), revival=DeadCodeRevival(0.5), decay=0.5)
    # Three scales, four φ: one of them never gets a gradient. The weight 0 below leaves the codebook without one.
    return SimpleVQVAE(16, 4, 8, quantizer=MultiScaleQuantizer(16, 4, (1, 2, 4), quantizer=codebook))


def batches(accumulate: int, poison: tuple[int, int] | None = None):
    """This process's pieces; in step `poison[0]` those of process `poison[1]` are NaN."""
    generator, step, rank = torch.Generator().manual_seed(5), 0, process_rank()
    size = BATCH // accumulate
    cuts = [0, size] if process_count() == 1 else [0, size * 5 // 8, size]  # 5 and 3 images, as after a bad file
    while True:
        step += 1
        for number in range(accumulate):
            joined = torch.rand(size, 3, 16, 16, generator=generator) * 2 - 1
            own = joined[cuts[rank] : cuts[rank + 1]]
            if poison == (step, rank):
                own = own * float("nan")
            keys = tuple(f"{step}-{rank}-{number}{k}" for k in range(len(own)))
            yield Batch(own, keys, (None,) * len(own))


def run(runtime: Runtime, steps: int = 6, accumulate: int = 1, poison=None, weights=None, **options):
    """Train and return lines of the log, weights and buffers."""
    config = OptimizationConfig(steps=steps, accumulate=accumulate, lr=3e-3, warmup_steps=2, **options)
    state = start_state(model(), config, runtime)
    lines = []
    losses = LossTable(weights or {"l1": 1.0})
    objective = TokenizerObjective(state.model, losses, runtime)
    for result in train_steps(state, batches(accumulate, poison), objective, config, runtime):
        if not isinstance(result, SkippedStep):
            lines.append(tokenizer_line(result, 16, state.skipped, 0.0))
    averaged = {f"averaged.{name}": value for name, value in state.averaged.state_dict().items()}
    return {"lines": lines, "skipped": state.skipped, **state.model.state_dict(), **averaged}


def everything(runtime: Runtime) -> dict:
    results = {
        "plain": run(runtime),
        "pieces": run(runtime, accumulate=2),
        "codebook weight 0": run(runtime, weights={"l1": 1.0, "codebook": 0.0}),
    }
    if process_count() > 1:
        results["skip"] = run(runtime, poison=(3, 1), on_non_finite="skip")
        results["stop"] = refusal(lambda: run(runtime, poison=(3, 1)), NonFiniteLossError)
        results["no data"] = refusal(lambda: starve(runtime), DataError)
        results["in all"] = refusal(lambda: in_all(lambda: int("x" if process_rank() else "1")), ValueError)
        results["on main"] = refusal(lambda: on_main(lambda: Path("/nowhere/x").read_text()), FileNotFoundError)
        results["main's"] = on_main(lambda: process_rank() + 7)
        results["any"] = any_process(process_rank() == 1)
        results["none"] = any_process(False)
    return results


def starve(runtime: Runtime) -> None:
    """The second process runs out of data at step 2."""

    def stream():
        for step, batch in enumerate(batches(1), start=1):
            if step == 2 and process_rank() == 1:
                raise ValueError("nothing left")
            yield batch

    config = OptimizationConfig(steps=3)
    state = start_state(model(), config, runtime)
    objective = TokenizerObjective(state.model, LossTable({"l1": 1.0}), runtime)
    list(train_steps(state, stream(), objective, config, runtime))


def refusal(task, kind: type[Exception]) -> str:
    try:
        task()
    except kind as error:
        return str(error)
    raise AssertionError("was not refused")


if __name__ == "__main__":
    runtime = join_processes("cpu", "fp32", channels_last=False)
    torch.save(everything(runtime), Path(sys.argv[1], f"{process_rank()}.pt"))
    leave_processes()


def alone() -> dict:
    return everything(choose_runtime("cpu", "fp32", channels_last=False))
