"""A training step and an encoding side by side: ours with its defaults, and what one writes with other packages.

    python benchmarks/train.py [--rounds 5] [--only simple-64] [--out benchmarks/train.json]

Networks: `SimpleVQVAE` (128 channels, 512 codes) and `vqgan-f8` (32 channels at the first level instead of 128, so that
a step takes a second and not a minute), both at 64 and 128 pixels. The contestants:

- smalti: `train_steps` as `smalti train` runs it: number format and memory layout chosen by the runtime, k-means start,
  revival, clipping, averaged weights.
- tutorial: our network in plain PyTorch (fp32) with the tutorials' quantizer (all distances, a one-hot matrix), AdamW.
- vector-quantize-pytorch: the same with its `VectorQuantize`.
- diffusers: its `VQModel` of the same widths, AdamW (vqgan-f8 only).

Every contestant first makes the steps in which codebooks start, then each round times all of them, taking turns; a row
has the images a second of the median round and the median over the rounds of theirs / ours. Peak memory is that of a
process that makes the same steps and nothing else.
"""

import argparse
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import processor
from torch import Tensor, nn

from smalti.data import Batch
from smalti.losses import LossTable
from smalti.tokenizers import Tokenizer
from smalti.training import OptimizationConfig, choose_runtime, start_state, train_steps
from smalti.zoo import build

THREADS, WARM_UP, STEPS = 2, 6, 2
ROWS = {
    "simple-64": ("simple", 64, 64),
    "simple-128": ("simple", 128, 16),
    "vqgan-f8-64": ("vqgan-f8", 64, 8),
    "vqgan-f8-128": ("vqgan-f8", 128, 4),
}
"""Name → model, pixels a side, images a step."""
WIDTHS = [32, 64, 64, 128]
PEERS = ("tutorial", "vector-quantize-pytorch", "diffusers")


def make_model(name: str) -> Tokenizer:
    """Our network with its default quantizer."""
    torch.manual_seed(0)
    return build(name) if name == "simple" else build(name, encoder={"widths": WIDTHS})


def pictures(side: int, batch: int) -> Tensor:
    """Smooth random images in [-1, 1]; no row depends on what they show."""
    small = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(small, size=(side, side), mode="bicubic").clamp(-1, 1)


# ---- contestants ----------------------------------------------------------------------------------------------------


class Contestant:
    """Makes training steps, and encodes."""

    def __init__(self, step: Callable[[], None], encode: Callable[[], object]):
        self.step, self.encode = step, encode


def ours(model: str, image: Tensor) -> Contestant:
    """What `smalti train` does."""
    runtime = choose_runtime("cpu")
    tokenizer = make_model(model)
    config = OptimizationConfig(steps=10**6, batch_size=len(image))
    state = start_state(tokenizer, config, runtime)
    batch = Batch(image, tuple(map(str, range(len(image)))), (None,) * len(image))
    steps = train_steps(state, itertools.repeat(batch), LossTable({"l1": 1.0}), config, runtime)

    def encode() -> object:
        with torch.no_grad(), runtime.autocast():
            return state.averaged.model.encode(image)

    return Contestant(lambda: next(steps), encode)


class TutorialQuantizer(nn.Module):
    """The vector quantizer that tutorials print: the matrix of all distances, then a one-hot matrix."""

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_embeddings, 1 / num_embeddings)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to codes of the same shape, and the loss."""
        z_BHWC = z.permute(0, 2, 3, 1).contiguous()
        flat, codes = z_BHWC.view(-1, z.shape[1]), self.embedding.weight
        distances = flat.pow(2).sum(1, keepdim=True) + codes.pow(2).sum(1) - 2 * flat @ codes.t()
        one_hot = torch.zeros(flat.shape[0], codes.shape[0])
        one_hot.scatter_(1, distances.argmin(1, keepdim=True), 1)
        z_q = (one_hot @ codes).view(z_BHWC.shape)
        loss = F.mse_loss(z_q, z_BHWC.detach()) + 0.25 * F.mse_loss(z_q.detach(), z_BHWC)
        return (z_BHWC + (z_q - z_BHWC).detach()).permute(0, 3, 1, 2).contiguous(), loss


class PeerQuantizer(nn.Module):
    """vector-quantize-pytorch's default, on images."""

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.vq = VectorQuantize(dim=embedding_dim, codebook_size=num_embeddings, accept_image_fmap=True)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to codes of the same shape, and the loss."""
        z_q, _, loss = self.vq(z)
        return z_q, loss.sum()


class PlainNetwork(nn.Module):
    """Our encoder and decoder as plain PyTorch lays them out, with another quantizer between."""

    def __init__(self, model: str, kind: type[TutorialQuantizer] | type[PeerQuantizer]):
        super().__init__()
        tokenizer = make_model(model)
        self.encoder, self.decoder = tokenizer.encoder, tokenizer.decoder
        self.quantizer = kind(tokenizer.vocab_size, tokenizer.quantizer.embedding_dim)
        self.to(memory_format=torch.contiguous_format)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and the quantizer's loss."""
        z_q, loss = self.quantizer(self.encoder(image))
        return self.decoder(z_q), loss

    def encode(self, image: Tensor) -> Tensor:
        """Codes of images."""
        return self.quantizer(self.encoder(image))[0]


class DiffusersNetwork(nn.Module):
    """diffusers' VQModel of the same widths."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from diffusers import VQModel

        blocks = len(WIDTHS)
        self.vq = VQModel(
            down_block_types=("DownEncoderBlock2D",) * (blocks - 1) + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (blocks - 1),
            block_out_channels=tuple(WIDTHS), layers_per_block=2, latent_channels=4, vq_embed_dim=4,
            num_vq_embeddings=16384, norm_num_groups=32,
        )  # fmt: skip

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and the quantizer's loss."""
        z_q, loss, _ = self.vq.quantize(self.vq.encode(image).latents)
        return self.vq.decode(z_q, force_not_quantize=True).sample, loss

    def encode(self, image: Tensor) -> Tensor:
        """Codes of images."""
        return self.vq.quantize(self.vq.encode(image).latents)[0]


def theirs(peer: str, model: str, image: Tensor) -> Contestant:
    """A network in a plain training loop."""
    if peer == "diffusers":
        network: nn.Module = DiffusersNetwork()
    else:
        network = PlainNetwork(model, TutorialQuantizer if peer == "tutorial" else PeerQuantizer)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> None:
        network.train()
        reconstruction, vq_loss = network(image)
        optimizer.zero_grad()
        (F.l1_loss(reconstruction, image) + vq_loss).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    def encode() -> object:
        network.eval()
        with torch.no_grad():
            return network.encode(image)

    return Contestant(step, encode)


def make(who: str, row: str) -> Contestant:
    """A contestant on its feet: the codebook has started, caches are warm."""
    model, side, batch = ROWS[row]
    image = pictures(side, batch)
    contestant = ours(model, image) if who == "smalti" else theirs(who, model, image)
    for _ in range(WARM_UP):
        contestant.step()
    contestant.encode()
    return contestant


def contestants_of(row: str) -> Iterator[str]:
    """Who takes part in a row."""
    yield "smalti"
    yield from (peer for peer in PEERS if peer != "diffusers" or row.startswith("vqgan"))


# ---- measuring ------------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], object], times: int) -> float:
    """Of one call, on average over a few."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def peak_memory(who: str, row: str) -> float:
    """MB of a process that makes the warm-up steps and nothing else."""
    command = [sys.executable, __file__, "--memory-of", who, row]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(row: str, rounds: int) -> dict:
    """All contestants of a row."""
    batch = ROWS[row][2]
    field = {who: make(who, row) for who in contestants_of(row)}
    times = {(who, what): [] for who in field for what in ("train", "encode")}
    for _ in range(rounds):
        for who, contestant in field.items():
            times[who, "train"].append(seconds(contestant.step, STEPS))
            times[who, "encode"].append(seconds(contestant.encode, STEPS))
    result = {"row": row, "images": batch, "contestants": {}}
    for who in field:
        entry = {"peak_mb": round(peak_memory(who, row))}
        for what in ("train", "encode"):
            entry[f"{what}_images_per_second"] = round(batch / statistics.median(times[who, what]), 1)
            pairs = zip(times[who, what], times["smalti", what], strict=True)
            entry[f"{what}_times_ours"] = round(statistics.median(a / b for a, b in pairs), 2)
        result["contestants"][who] = entry
    return result


def table(rows: list[dict], head: dict) -> str:
    """The results in Markdown."""
    lines = [
        "# A training step side by side", "",
        f"{head['date']}, {head['machine']}, {THREADS} threads, torch {head['torch']}. Ratios: theirs / ours in time, "
        "median of the rounds: above 1 where ours is faster.", "",
        "| network | contestant | train, images/s | ratio | encode, images/s | ratio | peak memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        for who, entry in row["contestants"].items():
            lines.append(
                f"| {row['row']} | {who} | {entry['train_images_per_second']} | {entry['train_times_ours']} "
                f"| {entry['encode_images_per_second']} | {entry['encode_times_ours']} | {entry['peak_mb']} |"
            )
    return "\n".join(lines) + "\n"


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
        rows = kept["rows"] if {k: kept[k] for k in head} == head else []
    for row in names:
        rows = [r for r in rows if r["row"] != row] + [measure(row)]
        print(json.dumps(rows[-1], indent=1), flush=True)
        if out:
            rows.sort(key=lambda r: order.index(r["row"]))
            out.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
            out.with_suffix(".md").write_text(table(rows, head))


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=ROWS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", nargs=2, metavar=("WHO", "ROW"), help="used by the benchmark itself")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.memory_of:
        make(*options.memory_of)
        # Linux's own count: getrusage's would begin at what the process that started this one had.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) / 1024)
        return
    head = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }
    head["peers"] = {name: version(name) for name in ("vector-quantize-pytorch", "diffusers")}
    names = [options.only] if options.only else list(ROWS)
    measure_rows(names, lambda row: compare(row, options.rounds), table, head, list(ROWS), options.out)


if __name__ == "__main__":
    main()
