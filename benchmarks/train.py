"""A training step and an encoding side by side: ours with its defaults, and what one writes with other packages.

    python benchmarks/train.py [--rounds 3] [--only simple-64] [--out benchmarks/train.json]

Networks: `SimpleVQVAE` (128 channels, 512 codes) and `vqgan-f8` (32 channels at the first level instead of 128, so that
a step takes a second and not a minute), both at 64 and 128 pixels. The contestants:

- smalti: `train_steps` as `smalti train` runs it, with k-means start, revival, clipping, averaged weights.
- tutorial: our network in plain PyTorch with the tutorials' quantizer (all distances, a one-hot matrix), AdamW.
- vector-quantize-pytorch: the same with its `VectorQuantize`.
- diffusers: its `VQModel` of the same widths, AdamW (vqgan-f8 only).

Everybody runs under several settings. "as published": ours as its runtime chooses, the others as they are written, in
fp32 and PyTorch's layout. "fp32" and, where the processor multiplies it, "bf16": all in this format, images, kernels
and codes channels last, quantizers in fp32. A ratio compares with ours under the same setting.

Every contestant first makes the steps in which codebooks start, then each round times all of them, taking turns; a row
has the images a second of the median round and the median over the rounds of theirs / ours. Peak memory is that of a
process that makes the same steps and nothing else. All rows take about eight minutes on two cores.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from report import Terms, beginning, facts, in_turns, measure_rows, ratio
from torch import Tensor, nn

from smalti.data import Batch
from smalti.losses import LossTable
from smalti.ops.device import DTYPES, choose_dtype
from smalti.tokenizers import Tokenizer
from smalti.training import OptimizationConfig, TokenizerObjective, choose_runtime, start_state, train_steps
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
PEERS = ("tutorial", "vector-quantize-pytorch", "no quantizer", "diffusers")
PUBLISHED = "as published"


@dataclass(frozen=True)
class Setting:
    """How a contestant computes."""

    dtype: torch.dtype
    layout: torch.memory_format

    def cast(self) -> AbstractContextManager:
        """The context of networks."""
        return torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype != torch.float32)

    def __str__(self) -> str:
        name = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        return f"{name}, {'channels last' if self.layout == torch.channels_last else 'contiguous'}"


def setting_of(who: str, name: str) -> Setting:
    """What a contestant does under the setting of that name."""
    if name != PUBLISHED:
        return Setting(DTYPES[name], torch.channels_last)
    if who == "smalti":
        return Setting(choose_dtype("auto", torch.device("cpu")), torch.channels_last)
    return Setting(torch.float32, torch.contiguous_format)


def setting_names() -> list[str]:
    """As published, then all alike: in fp32, and in bf16 where the processor multiplies it."""
    fast = choose_dtype("auto", torch.device("cpu"))
    return [PUBLISHED, "fp32", *(["bf16"] if fast == torch.bfloat16 else [])]


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


def ours(tokenizer: Tokenizer, image: Tensor, setting: Setting, device: str = "cpu") -> Contestant:
    """What `smalti train` does."""
    runtime = choose_runtime(device, next(name for name, dtype in DTYPES.items() if dtype == setting.dtype))
    config = OptimizationConfig(steps=10**6, batch_size=len(image))
    state = start_state(tokenizer, config, runtime)
    batch = Batch(image, tuple(map(str, range(len(image)))), (None,) * len(image))
    objective = TokenizerObjective(tokenizer, LossTable({"l1": 1.0}), runtime)
    steps = train_steps(state, itertools.repeat(batch), objective, config, runtime)

    there = image.to(runtime.device)

    def encode() -> object:
        with torch.no_grad(), runtime.autocast():
            return state.averaged.model.encode(there)

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


class NoQuantizer(nn.Module):
    """The latent goes on as it is: what is left is the time of the network, which no quantizer can save."""

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The latent, and no loss."""
        return z, z.new_zeros(())


QUANTIZERS: dict[str, type[nn.Module]] = {
    "tutorial": TutorialQuantizer,
    "vector-quantize-pytorch": PeerQuantizer,
    "no quantizer": NoQuantizer,
}
"""Contestants that share our network, by name."""


class PlainNetwork(nn.Module):
    """Our encoder and decoder with another quantizer between."""

    def __init__(self, model: str, kind: type[nn.Module], setting: Setting):
        super().__init__()
        self.setting = setting
        tokenizer = make_model(model)
        self.encoder, self.decoder = tokenizer.encoder, tokenizer.decoder
        self.quantizer = kind(tokenizer.vocab_size, tokenizer.quantizer.embedding_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and the quantizer's loss."""
        z_q, loss = self.quantize(image)
        with self.setting.cast():
            return self.decoder(z_q.contiguous(memory_format=self.setting.layout)), loss

    def quantize(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of images and the loss; quantizers compute in fp32, as ours do."""
        with self.setting.cast():
            z = self.encoder(image)
        return self.quantizer(z.float())


class DiffusersNetwork(nn.Module):
    """diffusers' VQModel of the same widths."""

    def __init__(self, setting: Setting):
        super().__init__()
        self.setting = setting
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
        z_q, loss = self.quantize(image)
        with self.setting.cast():
            return self.vq.decode(z_q, force_not_quantize=True).sample, loss

    def quantize(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of images and the loss."""
        with self.setting.cast():
            z = self.vq.encode(image).latents
        z_q, loss, _ = self.vq.quantize(z.float())
        return z_q.contiguous(memory_format=self.setting.layout), loss


def theirs(peer: str, model: str, image: Tensor, setting: Setting) -> Contestant:
    """A network in a plain training loop."""
    if peer == "diffusers":
        network: nn.Module = DiffusersNetwork(setting)
    else:
        network = PlainNetwork(model, QUANTIZERS[peer], setting)
    network.to(memory_format=setting.layout)
    image = image.contiguous(memory_format=setting.layout)
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
            return network.quantize(image)[0]

    return Contestant(step, encode)


def make(who: str, row: str, name: str) -> Contestant:
    """A contestant on its feet: the codebook has started, caches are warm."""
    model, side, batch = ROWS[row]
    image, setting = pictures(side, batch), setting_of(who, name)
    contestant = ours(make_model(model), image, setting) if who == "smalti" else theirs(who, model, image, setting)
    for _ in range(WARM_UP):
        contestant.step()
    contestant.encode()
    return contestant


def contestants_of(row: str) -> Iterator[str]:
    """Who takes part in a row."""
    yield "smalti"
    yield from (peer for peer in PEERS if peer != "diffusers" or row.startswith("vqgan"))


# ---- measuring ------------------------------------------------------------------------------------------------------


def peak_memory(who: str, row: str) -> float:
    """MB of a process that makes the warm-up steps as published and nothing else."""
    command = [sys.executable, __file__, "--memory-of", who, row]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(row: str, rounds: int) -> dict:
    """All contestants of a row under all settings."""
    batch = ROWS[row][2]
    result: dict = {"row": row, "images": batch, "settings": {}}
    for name in setting_names():
        field = {who: make(who, row, name) for who in contestants_of(row)}
        times = {
            "train": in_turns({who: contestant.step for who, contestant in field.items()}, rounds, STEPS),
            "encode": in_turns({who: contestant.encode for who, contestant in field.items()}, rounds, STEPS),
        }
        entries = {who: {"setting": str(setting_of(who, name))} for who in field}
        for who, what in itertools.product(field, times):
            entries[who][f"{what}_images_per_second"] = round(batch / statistics.median(times[what][who]), 1)
            entries[who][f"{what}_times_ours"] = round(ratio(times[what][who], times[what]["smalti"]), 2)
        result["settings"][name] = entries
    for who, entry in result["settings"][PUBLISHED].items():
        entry["peak_mb"] = round(peak_memory(who, row))
    return result


TERMS = Terms(
    compared="Images a second of a training step and of an encoding: `smalti train`, and plain PyTorch loops with two "
    "other quantizers in the same network, or with diffusers' network. Ratio: theirs / ours in time, both under the "
    "same setting, median of the rounds; above 1 where ours is faster. `no quantizer` is the plain loop on the network "
    "alone: no quantizer can make a step of this network faster than that.",
    number_format='In each row. "as published" is what each does when nobody asks for anything; under the other '
    "settings all networks compute in the same format by autocast, and all quantizers in fp32.",
    layout="In each row. Under the other settings images, kernels and codes are channels last for everybody.",
    threads=f"{THREADS} for everybody.",
    tuning="Nobody; no result depends on what the pictures show.",
    not_shown='From "as published", that our code is faster by that much: the number format is part of it. Nor '
    "anything about GPUs, or about how well anything learns.",
)


def table(rows: list[dict], head: dict) -> str:
    """The results in Markdown."""
    lines = [
        *beginning("A training step side by side", TERMS, head),
        "| network | setting | contestant | format, layout | train, images/s | ratio | encode, images/s | ratio "
        "| peak memory, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name, entries in row["settings"].items():
            for who, entry in entries.items():
                lines.append(
                    f"| {row['row']} | {name} | {who} | {entry['setting']} | {entry['train_images_per_second']} "
                    f"| {entry['train_times_ours']} | {entry['encode_images_per_second']} "
                    f"| {entry['encode_times_ours']} | {entry.get('peak_mb', '')} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=ROWS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", nargs=2, metavar=("WHO", "ROW"), help="used by the benchmark itself")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.memory_of:
        make(*options.memory_of, PUBLISHED)
        # Linux's own count: getrusage's would begin at what the process that started this one had.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) / 1024)
        return
    names = [options.only] if options.only else list(ROWS)
    head = facts("vector-quantize-pytorch", "diffusers")
    measure_rows(names, lambda row: compare(row, options.rounds), table, head, list(ROWS), options.out)


if __name__ == "__main__":
    main()
