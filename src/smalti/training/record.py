"""What is written down of a step: one line of numbers, in log.jsonl for programs and in TensorBoard for eyes.

A line speaks of its own step only, so a resumed run writes the same lines as one that never stopped, but for the speed.
Usage is that of one batch: good for seeing a collapse early, not for comparing tokenizers (`smalti eval` counts over a
whole set).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from smalti.formats.atomic import replace_file
from smalti.metrics import CodeUsage, psnr
from smalti.training.adversarial import Verdict
from smalti.training.agreement import share
from smalti.training.loop import Piece, StepResult

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
NEVER = 10**6
"""Seconds until TensorBoard would flush its file by itself."""


def measure(result: StepResult, vocab_size: int, skipped: int, images_per_second: float) -> dict[str, Any]:
    """The numbers of one step.

    Returns:
        step; loss: the weighted total; terms: every loss term by name, unweighted; lr; grad_norm: before clipping, null
        if fp16 overflowed; psnr: dB, mean over the batch, of the trained (not the averaged) weights; usage: share of
        all codes that the batch used; usage_per_scale: the same for each scale, coarse to fine; skipped: batches
        skipped so far; images_per_second; weights: what each term was taken with. While a discriminator learns also
        adversarial: its loss and terms, logits_real, logits_fake, accuracy, adaptive_weight. The batch is that of all
        processes, which must all call this.
    """
    parts = [part for parts in share([_look(piece) for piece in result.pieces]) for part in parts]
    counter = CodeUsage(vocab_size, len(parts[0][0]))
    for scales, _ in parts:
        counter.update(scales)
    usage = counter.compute()
    decibels = torch.cat([decibels for _, decibels in parts])
    return {
        "step": result.step,
        "loss": float(result.loss.total),
        "terms": {name: float(term) for name, term in result.loss.terms.items()},
        "weights": result.loss.weights,
        "lr": result.lr,
        "grad_norm": result.grad_norm if math.isfinite(result.grad_norm) else None,
        "psnr": float(decibels[decibels.isfinite()].mean()) if decibels.isfinite().any() else None,
        "usage": usage.total.usage,
        "usage_per_scale": [scale.usage for scale in usage.scales],
        "skipped": skipped,
        "images_per_second": images_per_second,
        **({"adversarial": _judged(result.verdict)} if result.verdict else {}),
    }


def _judged(verdict: Verdict) -> dict[str, Any]:
    """The numbers of a verdict, as they stand in the log."""
    return {
        "loss": float(verdict.loss.total),
        "terms": {name: float(term) for name, term in verdict.loss.terms.items()},
        "logits_real": verdict.logits_real,
        "logits_fake": verdict.logits_fake,
        "accuracy": verdict.accuracy,
        "adaptive_weight": verdict.adaptive_weight,
    }


def _look(piece: Piece) -> tuple[list[Tensor], Tensor]:
    """Indices of every scale and decibels (B,) of every image of a piece, on the CPU."""
    indices = piece.output.quantizer_output.indices
    scales = (indices,) if isinstance(indices, Tensor) else indices
    return [scale.cpu() for scale in scales], psnr(piece.output.reconstruction, piece.image).cpu()


class RunRecord:
    """The log of a run, to be closed at its end."""

    def __init__(self, run: str | Path, step: int = 0):
        """Open RUN/log.jsonl and RUN/tensorboard.

        Args:
            run: the run folder.
            step: completed steps of the checkpoint that the run goes on from; lines of later steps, written by a run
                that was killed after its last checkpoint, are dropped.
        """
        path = Path(run) / LOG
        kept = [line for line in read_log(run) if line["step"] <= step] if path.exists() else []
        with replace_file(path, force=True) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        # TensorBoard's thread shall not flush: an error of the disk belongs here, where it can end the run properly.
        purge = step + 1 if step else None
        self._board = SummaryWriter(str(Path(run) / TENSORBOARD), purge_step=purge, flush_secs=NEVER)

    def close(self) -> None:
        """Let go of the files."""
        try:
            self._file.close()
        finally:
            self._board.close()

    def add(self, line: Mapping[str, Any]) -> None:
        """Write the numbers of one step, as `measure` returns them."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for tag, value in _flatten(line):
            self._board.add_scalar(tag, value, line["step"])
        self._board.flush()

    def add_picture(self, image: UInt8[Tensor, "3 h w"] | UInt8[Tensor, "1 h w"], step: int) -> None:
        """Show a picture, uint8 (C, H, W), in TensorBoard."""
        self._board.add_image("samples", image, step)


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """The lines of RUN/log.jsonl, oldest first; a line that was cut off by a kill or damaged is left out."""
    text = (Path(run) / LOG).read_text(encoding="utf-8", errors="replace")
    lines = (_numbers(line) for line in text.split("\n")[:-1])
    return [line for line in lines if line is not None]


def _numbers(text: str) -> dict[str, Any] | None:
    """A line of the log; None if it is none."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def _flatten(line: Mapping[str, Any]) -> list[tuple[str, float]]:
    """TensorBoard's tags and values of a line: terms and scales become tags of their own."""
    named = {name: value for name, value in line.items() if isinstance(value, float | int) and name != "step"}
    for name, tag in (("loss", "loss/total"), ("usage", "usage/all")):
        if name in named:
            named[tag] = named.pop(name)
    named |= {f"loss/{name}": value for name, value in line.get("terms", {}).items()}
    named |= {f"usage/scale_{k}": value for k, value in enumerate(line.get("usage_per_scale", ()))}
    if judged := dict(line.get("adversarial", {})):
        numbers = {**judged.pop("terms"), **judged, "weight": line["weights"].get("adversarial", 0.0)}
        named |= {f"adversarial/{name}": value for name, value in numbers.items()}
    return [(tag, value) for tag, value in named.items() if value is not None and math.isfinite(value)]
