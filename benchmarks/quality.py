"""Which quantizer learns best? One small network, equal steps and data, quantizers side by side.

    python benchmarks/quality.py --tune --data embedded [--folder PHOTOS] [--processes 2]
    python benchmarks/quality.py [--folder PHOTOS] [--seeds 0 1 2] [--processes 2] [--out benchmarks/quality]

The network: convolution 4x4/2, ReLU, convolution 4x4/2 to 64 channels; the decoder mirrored; 64 channels between. K =
512 codes, one a position, so 9 bits for 4x4 pixels. AdamW 1e-3, batches of 32 images of 32x32 pixels, mean squared
error plus the quantizer's own loss. Convolutions run under bf16 autocast where the CPU multiplies bf16 fast, quantizers
in fp32. All rows of a seed see the same images in the same order. Pyramids alone are trained by the learning rate of
`smalti train`, a cosine from 1e-3 to 2 % of it: a code for whole images is chosen once in 16 batches, and under a
constant rate the encoder moves away from it.

Data: 300 steps of Fashion-MNIST padded to 32x32 (judged on the first 2000 images of its test split); 300 steps of crops
of the embedded photographs (judged on the two that are held out); 300 steps of crops of a folder of photographs (judged
on every tenth file by name). A third split of each set serves tuning alone: it is neither trained nor judged on.

The rows "tuned" are codebooks, ours and the peer's, whose decay, commitment, gradient and threshold of revival were
chosen by the same search (`quality_tuning.py`) on that third split. `--tune` does it, within ten minutes for one set,
and leaves OUT.tuned.json; without that file there are no such rows. All other rows have the settings of their authors.

Judged as `smalti eval` does: PSNR of each image rounded to uint8, averaged over images; usage and perplexity over all
images judged. Time is the median processor time of a training step on one thread, so that other work on the machine
does not count. Every finished run is appended to OUT.jsonl, and a run found there is not repeated. The table is
OUT.md and OUT.json, the plot OUT.png.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import vector_quantize_pytorch as peer
from quality_tuning import ALIVE, FAMILIES, D, K, Peer, peer_vq, projected, tune
from report import Terms, beginning, facts, write
from torch import nn

from smalti.data import TransformConfig, open_images
from smalti.metrics import CodeUsage, psnr
from smalti.ops.device import CPU_BF16_FEATURES
from smalti.quantizers import (
    BinarySphericalQuantizer,
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    IndexBackpropagationQuantizer,
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    SimVQ,
    VectorQuantizer,
)
from smalti.tokenizers.chosen_quantizer import default_quantizer
from smalti.training import OptimizationConfig, learning_rate

HIDDEN, SIZE, BATCH = 64, 32, 32
PATCH_NUMS = (1, 2, 3, 4, 6, 8)
TRAINING_CROPS, TEST_CROPS, TEST_IMAGES = 8192, 1024, 2000
STEPS = {"fashion-mnist": 300, "embedded": 300, "folder": 300}
HELD_OUT_EVERY, EMBEDDED_EVERY = 10, 5


class NoQuantizer(nn.Module):
    """The upper bound: the latent goes on as it is."""

    def forward(self, z):
        return z, z.new_zeros(()), None


class Tutorial(nn.Module):
    """What tutorials teach: codes start in ±1/K, the distance matrix is written out, the encoder ends in ReLU."""

    def __init__(self, relu: bool):
        super().__init__()
        self.relu = relu
        self.embedding = nn.Embedding(K, D)
        nn.init.uniform_(self.embedding.weight, -1 / K, 1 / K)

    def forward(self, z):
        z = F.relu(z) if self.relu else z
        rows = z.movedim(1, -1).reshape(-1, D)
        codebook = self.embedding.weight
        distances = rows.square().sum(1, keepdim=True) - 2 * rows @ codebook.T + codebook.square().sum(1)
        indices = distances.argmin(1)
        codes = self.embedding(indices)
        loss = F.mse_loss(codes, rows.detach()) + 0.25 * F.mse_loss(rows, codes.detach())
        grid = (z.shape[0], *z.shape[2:])
        return (rows + (codes - rows).detach()).reshape(*grid, D).movedim(-1, 1), loss, indices.reshape(grid)


ROWS: dict[str, Callable[[], nn.Module]] = {
    "no quantizer": NoQuantizer,
    "tutorial": lambda: Tutorial(relu=True),
    "tutorial, no last ReLU": lambda: Tutorial(relu=False),
    "vqp default": peer_vq,
    "vqp k-means, revival, no rotation": lambda: peer_vq(
        kmeans_init=True, threshold_ema_dead_code=2, rotation_trick=False
    ),
    "vqp k-means, revival": lambda: peer_vq(kmeans_init=True, threshold_ema_dead_code=2),
    "vqp cosine 8, k-means": lambda: peer_vq(codebook_dim=8, use_cosine_sim=True, kmeans_init=True),
    "vqp cosine 8, k-means, revival": lambda: peer_vq(
        codebook_dim=8, use_cosine_sim=True, kmeans_init=True, threshold_ema_dead_code=2
    ),
    "vqp SimVQ": lambda: Peer(peer.SimVQ(dim=D, codebook_size=K, channel_first=True)),
    "vqp FSQ [8, 8, 8]": lambda: Peer(peer.FSQ([8, 8, 8], dim=D, channel_first=True)),
    "vqp LFQ": lambda: Peer(peer.LFQ(dim=D, codebook_size=K, channel_first=True)),
    "smalti default": lambda: default_quantizer(K, D, None),
    "smalti gradient": lambda: VectorQuantizer(K, D, **ALIVE),
    "smalti rotation": lambda: EMAVectorQuantizer(K, D, gradient="rotation", **ALIVE),
    "smalti cosine 8": lambda: projected(EMAVectorQuantizer(K, 8, metric="cosine", **ALIVE)),
    "smalti SimVQ": lambda: SimVQ(K, D),
    "smalti IBQ": lambda: IndexBackpropagationQuantizer(K, D),
    "smalti Gumbel": lambda: GumbelQuantizer(K, D),
    "smalti FSQ [8, 8, 8]": lambda: projected(FiniteScalarQuantizer([8, 8, 8])),
    "smalti LFQ": lambda: projected(LookupFreeQuantizer(9)),
    "smalti BSQ": lambda: projected(BinarySphericalQuantizer(9)),
}
"""One code a position."""


def pyramid(quantizer, num_codebooks):
    return MultiScaleQuantizer(K, D, PATCH_NUMS, beta=1.0, num_codebooks=num_codebooks, quantizer=quantizer)


PYRAMIDS: dict[str, Callable[[], nn.Module]] = {
    "pyramid as in VAR": lambda: MultiScaleQuantizer(K, D, PATCH_NUMS),
    "pyramid gradient, one codebook": lambda: pyramid(VectorQuantizer(K, D, **ALIVE), 1),
    "pyramid one codebook": lambda: pyramid(EMAVectorQuantizer(K, D, decay=0.9, **ALIVE), 1),
    "pyramid gradient": lambda: pyramid(VectorQuantizer(K, D, **ALIVE), len(PATCH_NUMS)),
    "pyramid default": lambda: default_quantizer(K, D, PATCH_NUMS),
}
"""Several scales, on photographs only; a codebook for each scale but where a row says one."""


class TransposedConvolution(nn.ConvTranspose2d):
    """The same 4x4/2 layer with its gradients written as ordinary convolutions: on CPU 3 times faster backward."""

    def forward(self, x):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        return _Transposed.apply(x, self.weight.to(dtype), self.bias.to(dtype))


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(context, x, weight, bias):
        context.save_for_backward(x, weight)
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)

    @staticmethod
    def backward(context, gradient):
        x, weight = context.saved_tensors
        weight_gradient = torch.nn.grad.conv2d_weight(gradient, weight.shape, x, stride=2, padding=1)
        return F.conv2d(gradient, weight, stride=2, padding=1), weight_gradient, gradient.sum((0, 2, 3))


def network() -> tuple[nn.Module, nn.Module]:
    encoder = nn.Sequential(nn.Conv2d(3, HIDDEN, 4, 2, 1), nn.ReLU(), nn.Conv2d(HIDDEN, D, 4, 2, 1))
    decoder = nn.Sequential(
        TransposedConvolution(D, HIDDEN, 4, 2, 1), nn.ReLU(), TransposedConvolution(HIDDEN, 3, 4, 2, 1)
    )
    return tuple(part.to(memory_format=torch.channels_last) for part in (encoder, decoder))


def to_images(batch: torch.Tensor) -> torch.Tensor:
    """uint8 to float in [-1, 1]; grey to three equal channels."""
    return (batch.expand(-1, 3, -1, -1).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def run(name: str, data: str, seed: int, steps: int, settings: dict | None = None, split: str = "test") -> dict:
    """Train one row with one seed on one set, and judge it; a tuned row has settings."""
    torch.manual_seed(seed)
    encoder, decoder = network()
    quantizer = FAMILIES[name](**settings) if settings else (ROWS | PYRAMIDS)[name]()
    parts = nn.ModuleList([encoder, quantizer, decoder]).train()
    optimizer = torch.optim.AdamW([p for p in parts.parameters() if p.requires_grad], lr=1e-3)
    train, test = DATA[data]["train"], DATA[data][split]
    schedule = OptimizationConfig(steps=steps, lr=1e-3, warmup_steps=0)
    order = torch.Generator().manual_seed(seed)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=any(flag in flags for flag in CPU_BF16_FEATURES))

    def reconstruct(image):
        with bf16:
            z = encoder(image)
        quantized, loss, indices = quantizer(z.float())
        with bf16:
            return decoder(quantized).float(), loss, indices

    times = []
    for step in range(steps):
        start = time.process_time()
        if name in PYRAMIDS:
            optimizer.param_groups[0]["lr"] = learning_rate(schedule, step)
        for part in parts.modules():
            if isinstance(part, Quantizer):
                part.set_progress(step / steps)
        image = to_images(train[torch.randint(len(train), (BATCH,), generator=order)])
        reconstruction, loss, _ = reconstruct(image)
        optimizer.zero_grad()
        (F.mse_loss(reconstruction, image) + loss).backward()
        optimizer.step()
        times.append(time.process_time() - start)
    parts.eval()
    result = {"row": name, "data": data, "seed": seed, "steps": steps, "step_ms": statistics.median(times) * 1e3}
    result["test"] = judge(reconstruct, test)
    if name in PYRAMIDS:
        result["train"] = judge(reconstruct, train)
    return result


@torch.no_grad()
def judge(reconstruct: Callable, images: torch.Tensor) -> dict:
    """PSNR, and the use of the codes: of all scales together, and of each where there are several."""
    decibels, usage = [], None
    for batch in images.split(256):
        image = to_images(batch)
        reconstruction, _, indices = reconstruct(image)
        decibels += psnr(reconstruction, image).tolist()
        if indices is not None:
            scales = [indices] if isinstance(indices, torch.Tensor) else list(indices)
            usage = usage or CodeUsage(K, len(scales))
            usage.update([scale.long() for scale in scales])
    result = {"psnr": statistics.mean(decibels)}
    if usage is not None:
        counted = usage.compute()
        result |= {"usage": counted.total.usage, "perplexity": counted.total.perplexity}
        result |= {"scales": [scale.usage for scale in counted.scales]}
    return result


# ---- data ---------------------------------------------------------------------------------------------------------

DATA: dict[str, dict[str, torch.Tensor]] = {}
"""Name to images to train, tune and judge on ("train", "tuning", "test"), uint8 (N, C, 32, 32). Filled once, inherited
by forked processes."""


def fashion_mnist(split: str) -> torch.Tensor:
    source = open_images(f"fashion-mnist:{split}", channels=1)
    images = torch.from_numpy(np.stack([source.load(i)[:, :, 0] for i in range(len(source))]))
    return F.pad(images[:, None], (2, 2, 2, 2))


def crops(data: str, count: int, seed: int, keep: Callable[[int], bool] = lambda i: True) -> torch.Tensor:
    """Random crops, equally many of each photograph, showing all of its height (or width) or down to a quarter."""
    source = open_images(data)
    chosen = [i for i in range(len(source)) if keep(i)]
    transform, generator = TransformConfig(SIZE, "random", zoom=4.0, flip=True), np.random.default_rng(seed)
    cut = []
    for place, i in enumerate(chosen):
        photograph = source.load(i)
        share = count * (place + 1) // len(chosen) - count * place // len(chosen)
        cut += [transform.apply(photograph, generator) for _ in range(share)]
    return torch.stack(cut)


def load_data(folder: str | None) -> None:
    clothes = fashion_mnist("train")
    DATA["fashion-mnist"] = {
        "train": clothes[:-TEST_IMAGES],
        "tuning": clothes[-TEST_IMAGES:],
        "test": fashion_mnist("test")[:TEST_IMAGES],
    }
    DATA["embedded"] = {
        "train": crops("embedded", TRAINING_CROPS, 0, lambda i: i % EMBEDDED_EVERY > 0),
        "tuning": crops("embedded", TEST_CROPS, 2, lambda i: i % EMBEDDED_EVERY == 0),
        "test": crops("embedded:test", TEST_CROPS, 1),
    }
    if folder:
        DATA["folder"] = {
            "train": crops(folder, TRAINING_CROPS, 0, lambda i: i % HELD_OUT_EVERY < HELD_OUT_EVERY - 2),
            "tuning": crops(folder, TEST_CROPS, 2, lambda i: i % HELD_OUT_EVERY == HELD_OUT_EVERY - 2),
            "test": crops(folder, TEST_CROPS, 1, lambda i: i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1),
        }


# ---- results ------------------------------------------------------------------------------------------------------


def summary(runs: list[dict]) -> list[dict]:
    """Mean and spread (largest minus smallest, halved) over the seeds of each row on each set."""

    def over_seeds(values):
        return {"mean": statistics.mean(values), "spread": (max(values) - min(values)) / 2}

    rows = []
    for data in dict.fromkeys(run["data"] for run in runs):
        for name in (*ROWS, *FAMILIES, *PYRAMIDS):
            same = [run for run in runs if run["row"] == name and run["data"] == data]
            if not same:
                continue
            row = {"data": data, "row": name, "seeds": len(same), "step_ms": over_seeds([r["step_ms"] for r in same])}
            row |= {key: over_seeds([r["test"][key] for r in same]) for key in same[0]["test"] if key != "scales"}
            if name in PYRAMIDS:
                for judged in ("test", "train"):
                    scales = zip(*(r[judged]["scales"] for r in same), strict=True)
                    row[f"scales_{judged}"] = [statistics.mean(values) for values in scales]
            rows.append(row)
    return rows


TERMS = Terms(
    compared=f"PSNR on held-out images of quantizers in one network of two convolutions a side, K = {K} codes of {D} "
    "numbers, after equally many steps on equal data; ± is half the range over seeds. [quality.py](quality.py) has the "
    "rest. vqp is vector-quantize-pytorch.",
    number_format="Convolutions in bf16 where the processor multiplies it, else in fp32; quantizers in fp32. The same "
    "for every row.",
    layout="Channels last for every row.",
    threads="One a run.",
    tuning="Rows named tuned, where there are any: ours and the peer's by the same search on a third split that is "
    "neither trained nor judged on. The settings of our default were first chosen on the judged images of former "
    "versions of this table; the search finds the same ones. The pyramids were tuned on those images. All other rows "
    "have what their authors set or recommend.",
    not_shown="Anything for other networks, longer training, more codes or larger images; by a lead of under 0.2 dB "
    "that one package is better than another; from a row that is not tuned what its quantizer can do; from the time "
    "of a step, taken beside other work on the same cores, anything below a factor of 1.5.",
)


def markdown(result: dict) -> str:
    """The tables, best row first."""
    lines = beginning("Which quantizer learns best", TERMS, result)
    for data, families in result.get("tuned", {}).items():
        for name, settings in families.items():
            lines.append(f"- {name}, on {data}: {', '.join(f'{key} {value}' for key, value in settings.items())}")
    for data in dict.fromkeys(row["data"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["data"] == data]
        rows.sort(key=lambda row: -row["psnr"]["mean"])
        lines += ["", f"## {data}", "", "| quantizer | PSNR, dB | codes used | perplexity | ms a step |"]
        lines.append("|---|---|---|---|---|")
        for row in (row for row in rows if row["row"] not in PYRAMIDS):
            lines.append(f"| {row['row']} | {plus_minus(row['psnr'], 2)} | {used(row)} | {step(row)} |")
        pyramids = [row for row in rows if row["row"] in PYRAMIDS]
        if pyramids:
            sides = " | ".join(f"{side}×{side}" for side in PATCH_NUMS)
            lines += ["", "Usage of the codebook at each scale, on the training crops (on the held-out crops):", ""]
            lines += [f"| quantizer | PSNR, dB | {sides} | ms a step |", "|---" * (len(PATCH_NUMS) + 3) + "|"]
        for row in pyramids:
            both = zip(row["scales_train"], row["scales_test"], strict=True)
            cells = " | ".join(f"{train:.1%} ({test:.1%})" for train, test in both)
            lines.append(f"| {row['row']} | {plus_minus(row['psnr'], 2)} | {cells} | {row['step_ms']['mean']:.0f} |")
    return "\n".join(lines) + "\n"


def plus_minus(value: dict, digits: int) -> str:
    return f"{value['mean']:.{digits}f} ± {value['spread']:.{digits}f}"


def used(row: dict) -> str:
    return f"{row['usage']['mean'] * K:.0f} | {row['perplexity']['mean']:.0f}" if "usage" in row else "– | –"


def step(row: dict) -> str:
    return f"{row['step_ms']['mean']:.0f}"


def plot(result: dict, path: Path) -> None:
    """A bar a row and a panel a set, ours in colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["data"] for row in result["rows"]))
    figure, axes = pyplot.subplots(1, len(names), figsize=(5 * len(names), 6), squeeze=False, layout="constrained")
    for axis, data in zip(axes[0], names, strict=True):
        rows = [r for r in result["rows"] if r["data"] == data and r["row"] not in (*PYRAMIDS, "no quantizer")]
        rows.sort(key=lambda row: row["psnr"]["mean"])
        colours = ["tab:blue" if row["row"].startswith("smalti") else "0.6" for row in rows]
        psnrs, spreads = ([row["psnr"][key] for row in rows] for key in ("mean", "spread"))
        axis.barh([row["row"] for row in rows], psnrs, xerr=spreads, color=colours)
        axis.set(title=data, xlabel="PSNR on held-out images, dB", xlim=(min(psnrs) - 0.5, max(psnrs) + 0.5))
    figure.savefig(path, dpi=100)


def pool_of(processes: int) -> concurrent.futures.ProcessPoolExecutor:
    """Processes that inherit the data."""
    return concurrent.futures.ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", help="a folder of photographs, a third set")
    parser.add_argument("--data", nargs="+", help="only these sets: fashion-mnist, embedded, folder")
    parser.add_argument("--tune", action="store_true", help="choose the settings of the tuned rows, and nothing else")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *PYRAMIDS], default=[*ROWS, *PYRAMIDS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/quality"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    log = options.out.with_suffix(".jsonl")
    lines = log.read_text().splitlines() if log.exists() else []
    done = {tuple(run[key] for key in ("row", "data", "seed", "steps")): run for run in map(json.loads, lines)}
    runs = list(done.values())
    load_data(options.folder)
    tuned_file = options.out.with_suffix(".tuned.json")
    tuned = json.loads(tuned_file.read_text()) if tuned_file.exists() else {}
    if options.tune:
        with pool_of(options.processes) as pool:
            for data in options.data or DATA:
                tuned[data] = tune(lambda *task, data=data: pool.submit(run, task[0], data, 0, STEPS[data], *task[1:]))
                tuned_file.write_text(json.dumps(tuned, indent=1) + "\n")
        return
    todo = [
        (name, data, seed, STEPS[data], settings)
        for seed in options.seeds
        for data in options.data or DATA
        for name, settings in tuned.get(data, {}).items()
        if (name, data, seed, STEPS[data]) not in done
    ]
    todo += [
        task
        for seed in options.seeds
        for data in options.data or DATA
        for name in options.rows
        if (task := (name, data, seed, STEPS[data])) not in done and (name in ROWS or data != "fashion-mnist")
    ]
    with pool_of(options.processes) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run, *task) for task in todo]):
            runs.append(future.result())
            with log.open("a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
            print(json.dumps(runs[-1]), flush=True)
    rows = summary([run for run in runs if run["steps"] == STEPS[run["data"]]])
    result = {**facts("vector-quantize-pytorch", "smalti"), "steps": STEPS, "tuned": tuned, "rows": rows}
    write(options.out, result, markdown(result))
    plot(result, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
