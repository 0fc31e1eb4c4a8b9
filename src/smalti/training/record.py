"""The log of a run: one line of numbers per logged step, in log.jsonl for programs and in TensorBoard for people.

A line depends on its own step only, so a resumed run writes the same lines as an uninterrupted run, except the speed.
Usage is that of one batch. It shows codebook collapse early but does not compare tokenizers (`smalti eval` counts over
a whole data set).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from smalti.data import picture_grid
from smalti.distributed import sum_over_processes
from smalti.formats.atomic import replace_file
from smalti.metrics import psnr
from smalti.ops import count_codes
from smalti.tokenizers import Tokenizer
from smalti.training.gan import DiscriminatorResult
from smalti.training.loop import StepResult
from smalti.training.objectives import TokenizerPass

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
NEVER = 10**6
"""Seconds between flushes by TensorBoard itself."""


def tokenizer_line(result: StepResult, vocab_size: int, skipped: int, images_per_second: float) -> dict[str, Any]:
    """The numbers of one step of a tokenizer.

    Returns:
        step; loss: the weighted total; terms: every loss term by name, unweighted; lr; grad_norm: before clipping, null
        if fp16 overflowed; psnr: dB, mean over the batch, of the trained (not the averaged) weights; usage: share of
        all codes that the batch used; usage_per_scale: the same for each scale, coarse to fine; skipped: batches
        skipped so far; images_per_second; weights: the weight of each term. While a discriminator learns also
        adversarial: its loss and terms, logits_real, logits_fake, accuracy, adaptive_weight. The numbers are over the
        batch of all processes; all processes must call this.
    """
    line = read_numbers(
        {
            "step": result.step,
            "loss": result.loss.total,
            "terms": result.loss.terms,
            "weights": result.loss.weights,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            **_quality(result.outputs, vocab_size),
            "skipped": skipped,
            "images_per_second": images_per_second,
            **({"adversarial": _discriminator(result.discriminator)} if result.discriminator else {}),
        }
    )
    return line | {name: line[name] if math.isfinite(line[name]) else None for name in ("grad_norm", "psnr")}


def prior_line(result: StepResult, images_per_second: float) -> dict[str, Any]:
    """The numbers of one step of a prior.

    Returns:
        step; loss: nats per token; bits_per_token: the same in bits; lr; grad_norm: before clipping, null if fp16
        overflowed; images_per_second.
    """
    loss, grad_norm = read_numbers([result.loss.total, result.grad_norm])
    return {
        "step": result.step,
        "loss": loss,
        "bits_per_token": loss / math.log(2),
        "lr": result.lr,
        "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
        "images_per_second": images_per_second,
    }


def read_numbers(nested: Any) -> Any:
    """The same dictionaries and lists with scalar tensors as plain numbers, all read in one transfer."""
    scalars: list[Tensor] = []
    _replaced(nested, lambda scalar: scalars.append(scalar.detach().double()))
    values = iter(torch.stack(scalars).tolist())
    return _replaced(nested, lambda _: next(values))


def _replaced(nested: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same dictionaries and lists with `function` applied to each tensor."""
    if isinstance(nested, dict):
        return {name: _replaced(value, function) for name, value in nested.items()}
    if isinstance(nested, list):
        return [_replaced(value, function) for value in nested]
    return function(nested) if isinstance(nested, Tensor) else nested


def _discriminator(result: DiscriminatorResult) -> dict[str, Any]:
    """The numbers of the discriminator for the log."""
    return {
        "loss": result.loss.total,
        "terms": result.loss.terms,
        "logits_real": result.logits_real,
        "logits_fake": result.logits_fake,
        "accuracy": result.accuracy,
        "adaptive_weight": result.adaptive_weight,
    }


def _quality(passes: Sequence[TokenizerPass], vocab_size: int) -> dict[str, Any]:
    """PSNR and usage over the passes of all processes; PSNR is NaN if all reconstructions are exact."""
    decibels_B = torch.cat([psnr(each.output.reconstruction, each.image) for each in passes])
    finite_B = decibels_B.isfinite()
    total, images = sum_over_processes(torch.stack([torch.where(finite_B, decibels_B, 0.0).sum(), finite_B.sum()]))
    indices = [each.output.quantizer_output.indices for each in passes]
    scales = zip(*((i,) if isinstance(i, Tensor) else i for i in indices), strict=True)
    counts = [count_codes(torch.cat([part.flatten() for part in scale]), vocab_size) for scale in scales]
    used_SK = sum_over_processes(torch.stack(counts)) > 0
    return {
        "psnr": total / images,
        "usage": used_SK.any(dim=0).double().mean(),
        "usage_per_scale": list(used_SK.double().mean(dim=1)),
    }


class RunRecord:
    """The log of a run; close it at the end."""

    def __init__(self, run: str | Path, step: int = 0):
        """Open RUN/log.jsonl and RUN/tensorboard.

        Args:
            run: the run directory.
            step: completed steps of the checkpoint that the run resumes from; log lines of later steps (of a run killed
                after its last checkpoint) are dropped.
        """
        path = Path(run) / LOG
        kept = [line for line in read_log(run) if line["step"] <= step] if path.exists() else []
        with replace_file(path, force=True) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        from torch.utils.tensorboard import SummaryWriter  # takes a third of a second to import

        # Do not let TensorBoard's thread flush: a disk error must occur here, where it can end the run properly.
        purge = step + 1 if step else None
        self._board = SummaryWriter(str(Path(run) / TENSORBOARD), purge_step=purge, flush_secs=NEVER)

    def close(self) -> None:
        """Close the files."""
        try:
            self._file.close()
        finally:
            self._board.close()

    def add(self, line: Mapping[str, Any]) -> None:
        """Write the numbers of one step, from `tokenizer_line` or `prior_line`."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for tag, value in _flatten(line):
            self._board.add_scalar(tag, value, line["step"])
        self._board.flush()

    def add_picture(self, image: UInt8[Tensor, "3 h w"] | UInt8[Tensor, "1 h w"], step: int) -> None:
        """Write a picture, uint8 (C, H, W), to TensorBoard."""
        self._board.add_image("samples", image, step)


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """The lines of RUN/log.jsonl, oldest first; incomplete or damaged lines are left out."""
    text = (Path(run) / LOG).read_text(encoding="utf-8", errors="replace")
    lines = (_numbers(line) for line in text.split("\n")[:-1])
    return [line for line in lines if line is not None]


def _numbers(text: str) -> dict[str, Any] | None:
    """A line of the log; None if it is invalid."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def _flatten(line: Mapping[str, Any]) -> list[tuple[str, float]]:
    """TensorBoard tags and values of a line, with one tag per term and per scale."""
    named = {name: value for name, value in line.items() if isinstance(value, float | int) and name != "step"}
    for name, tag in (("loss", "loss/total"), ("usage", "usage/all")):
        if name in named:
            named[tag] = named.pop(name)
    named |= {f"loss/{name}": value for name, value in line.get("terms", {}).items()}
    named |= {f"usage/scale_{k}": value for k, value in enumerate(line.get("usage_per_scale", ()))}
    if found := dict(line.get("adversarial", {})):
        numbers = {**found.pop("terms"), **found, "weight": line["weights"].get("adversarial", 0.0)}
        named |= {f"adversarial/{name}": value for name, value in numbers.items()}
    return [(tag, value) for tag, value in named.items() if value is not None and math.isfinite(value)]


@torch.no_grad()
def reconstruction_grid(model: Tokenizer, image: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "c height width"]:
    """A row of images (B, C, H, W) in [-1, 1], and below it their reconstructions by a model in eval mode."""
    return picture_grid([image, model(image).reconstruction])
