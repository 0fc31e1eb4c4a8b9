"""What tokenizing costs: the pipeline against the bare model, memory over many images, and large sets on paper.

    python benchmarks/tokenizing.py [--photos ../shared/photos/train] [--parts speed memory paper] [--out FILE.json]

speed   `smalti tokenize` on photographs against `tokenizer.encode` alone on the same images in memory, in turns, with
        two threads; images a second from the second batch on, so that no start is in them. A row has the medians over
        the rounds, and the median of pipeline / bare.
memory  100 000 generated pictures of 32 x 32 in one Parquet file; the resident memory of the process at ten points.
paper   GPU-hours and decoding cores for large sets: operations of the published encoders, counted by PyTorch, and the
        assumptions below.

`--out` keeps the parts of the file that are not measured anew.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import torch
from PIL import Image
from pyarrow import parquet
from report import Terms, beginning, facts, write
from torch.utils.flop_counter import FlopCounterMode

from smalti.data import open_images
from smalti.data.views import ViewsConfig, view_batches
from smalti.jobs.tokenize import TokenizeConfig, tokenize
from smalti.tokenizers import SimpleVQVAE
from smalti.zoo import build

THREADS, BATCH = 2, 16
CASES = (("multi-scale", 128, 240), ("simple-f8", 128, 240), ("simple-f8", 256, 128), ("llamagen-f16", 256, 64))
"""Model, side of the images, how many."""
GPU_FLOPS = {"fp32": 10e12, "TF32": 50e12}
"""What one GPU is assumed to sustain: about half and a third of the 19.5 and 156 TFLOP/s of an A100's data sheet."""
SETS = {"ImageNet": 1_281_167, "LAION-400M": 400_000_000}
GPUS = (1, 8, 64)
PUBLISHED = ("var-f16", "llamagen-f16", "titok-l32")


# ---- speed ----------------------------------------------------------------------------------------------------------


def folder_of(photos, count, folder):
    """So many of the photographs, as links; more than there are come again."""
    folder.mkdir()
    paths = sorted(photos.iterdir())
    for i in range(count):
        (folder / f"{i:04d}{paths[i % len(paths)].suffix}").symlink_to(paths[i % len(paths)].resolve())
    return folder


def bare(model, images, side):
    """Images a second of encoding alone."""
    views = view_batches(images, ViewsConfig([side, side]), [range(i, i + BATCH) for i in range(0, len(images), BATCH)])
    batches = [torch.stack([image.views[0].pixels for image in batch.images]) for batch in views]
    model.encode(batches[0])
    start = time.perf_counter()
    for batch in batches[1:]:
        model.encode(batch)
    return (len(images) - BATCH) / (time.perf_counter() - start)


def pipeline(run, photos, side, workers):
    """Images a second of the whole job, from the second batch to the last, its shard written."""
    seen = []
    with tempfile.TemporaryDirectory() as out:
        config = TokenizeConfig(
            str(run), str(photos), f"{out}/tokens", size=side, shard_images=64, workers=workers, device="cpu"
        )
        tokenize(config, lambda done, total: seen.append((done, time.perf_counter())))
    (first, start), (last, end) = seen[2], seen[-1]
    return (last - first) / (end - start)


def speed(photos, rounds, workers):
    rows = []
    for name, side, count in CASES:
        with tempfile.TemporaryDirectory() as folder:
            model = build(name).eval()
            model.save_pretrained(f"{folder}/run")
            links = folder_of(photos, count, Path(folder, "photos"))
            images = open_images(links)
            measured = {each: [] for each in workers}
            alone = []
            for _ in range(rounds):
                alone.append(bare(model, images, side))
                for each in workers:
                    measured[each].append(pipeline(f"{folder}/run", links, side, each))
                    print(name, side, each, alone[-1], measured[each][-1], flush=True)
        rows.append(
            {
                "model": name,
                "size": side,
                "gflop_an_image": round(encoder_flops(name, side) / 1e9, 1),
                "bare": round(statistics.median(alone), 2),
                "read": round(reading(photos, side), 1),
                "pipeline": {each: round(statistics.median(values), 2) for each, values in measured.items()},
                "share": {
                    each: round(statistics.median(a / b for a, b in zip(values, alone, strict=True)), 3)
                    for each, values in measured.items()
                },
            }
        )
    return rows


def encoder_flops(name, side):
    """Operations of one image through encoder and quantizer, a multiplication and an addition counting as two."""
    model = build(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode(torch.zeros(1, model.image_channels, side, side, dtype=torch.uint8))
    return counter.get_total_flops()


# ---- memory ---------------------------------------------------------------------------------------------------------


def generated(path, count, side=32):
    """A Parquet file of small PNGs, written row group by row group."""
    rng = np.random.default_rng(0)
    schema = pyarrow.schema([("image", pyarrow.binary())])
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 1000):
            files = []
            for pixels in rng.integers(0, 256, (min(1000, count - start), side, side, 3), dtype=np.uint8):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "png", compress_level=1)
                files.append(buffer.getvalue())
            writer.write_table(pyarrow.table({"image": files}, schema))


def resident_mib():
    """Resident memory of this process, from the kernel."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(count):
    points, samples = [count * k // 10 for k in range(1, 11)], []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        SimpleVQVAE(512, 16, 16).eval().save_pretrained(f"{folder}/run")
        generated(f"{folder}/images.parquet", count)
        print("generated", flush=True)

        def sample(done, total):
            while points and done >= points[0]:
                samples.append({"images": points.pop(0), "mib": round(resident_mib())})
                print(samples[-1], flush=True)

        config = TokenizeConfig(f"{folder}/run", f"{folder}/images.parquet", f"{folder}/out", size=32, device="cpu")
        result = tokenize(config, sample)
        assert result.images == count
    return {"images": count, "samples": samples}


# ---- on paper -------------------------------------------------------------------------------------------------------


def reading(photos, side=256):
    """Images a second that one core reads, decodes and crops."""
    images = open_images(photos)
    pieces = [range(i, i + BATCH) for i in range(0, len(images) - BATCH, BATCH)]
    batches = view_batches(images, ViewsConfig([side, side]), pieces)
    next(batches)
    start = time.perf_counter()
    count = sum(len(batch.images) for batch in islice(batches, 16))
    return count / (time.perf_counter() - start)


def paper(photos):
    read = reading(photos)
    rows = []
    for name in PUBLISHED:
        flops = encoder_flops(name, 256)
        for number_format, sustained in GPU_FLOPS.items():
            a_second = sustained / flops
            hours = {data: {gpus: images / a_second / gpus / 3600 for gpus in GPUS} for data, images in SETS.items()}
            row = {"model": name, "format": number_format, "gflop": flops / 1e9, "images_a_gpu_second": a_second}
            rows.append({**row, "hours": hours})
    return {"gpu_flops": GPU_FLOPS, "images_a_core_second": read, "rows": rows}


# ---- what is written ------------------------------------------------------------------------------------------------


TERMS = Terms(
    compared="`smalti tokenize` from photographs on disk to written shards, and `tokenizer.encode` alone on the same "
    "images in memory: images a second, medians of rounds in turns. Then the memory of a long run, and large sets on "
    "paper.",
    number_format="fp32 everywhere, as `smalti tokenize` computes; on paper fp32, and TF32, in "
    "which torch computes convolutions on such GPUs unless it is told otherwise, so that tokens may differ from fp32.",
    layout="As the models choose: channels last in the networks of VQGANs, PyTorch's own in the small ones.",
    threads=f"{THREADS} for the networks; workers are further processes on the same cores.",
    tuning="Nobody; random weights cost what trained ones do.",
    not_shown="How fast other packages tokenize: none takes part. What is on paper nobody ran: it is operations over "
    "an assumed speed, without the start, the reading and the waiting of a real cluster.",
)


def markdown(result):
    lines = beginning("Tokenizing", TERMS, result)
    if "speed" in result:
        lines += speed_table(result["speed"])
    if "memory" in result:
        lines += memory_table(result["memory"])
    if "paper" in result:
        lines += paper_tables(result["paper"])
    return "\n".join(lines)


def speed_table(rows):
    lines = [
        "## The pipeline against the bare model",
        "",
        f"Images a second with {THREADS} threads, from photographs on disk to written shards, and the share of what "
        "`tokenizer.encode` reaches alone on images in memory. The model fills all cores, and images are decoded on "
        "the same ones: `possible` is the share that is left if decoding costs what it costs one core alone and "
        "nothing else costs anything.",
        "",
        "| model | size | GFLOP an image | bare | 0 workers | 1 worker | 2 workers | best share | possible |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{row['pipeline'][w]} ({row['share'][w]:.0%})" for w in row["pipeline"]]
        best = max(row["share"].values())
        start = f"| {row['model']} | {row['size']} | {row['gflop_an_image']} | {row['bare']} "
        possible = 1 / (1 + row["bare"] / (THREADS * row["read"]))
        lines.append(f"{start}| {' | '.join(cells)} | {best:.0%} | {possible:.0%} |")
    return [*lines, ""]


def memory_table(part):
    lines = [
        "## Memory",
        "",
        f"{part['images']:,} generated images of 32 x 32 in one Parquet file, no workers; "
        "resident memory of the process in MiB:",
        "",
        "| " + " | ".join(f"{sample['images']:,}" for sample in part["samples"]) + " |",
        "|" + "---|" * len(part["samples"]),
        "| " + " | ".join(str(sample["mib"]) for sample in part["samples"]) + " |",
    ]
    return [*lines, ""]


def paper_tables(part):
    speeds = " and ".join(f"{flops / 1e12:.0f} TFLOP/s in {name}" for name, flops in part["gpu_flops"].items())
    lines = [
        "## Large sets, on paper",
        "",
        f"Nobody ran this. Assumed: images of 256 x 256, one view each; a GPU that sustains {speeds}, of the 19.5 and "
        "156 TFLOP/s of an A100's data sheet; GPUs that never wait, as shards are independent of each other. Counted: "
        "operations of the encoders with the layers of the published models. "
        f"Measured: one core reads, decodes and crops {part['images_a_core_second']:.0f} photographs a second, which "
        "says how many cores a GPU needs beside it.",
        "",
        "| model | format | GFLOP an image | images a GPU-second | cores a GPU | set | 1 GPU | 8 GPUs | 64 GPUs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in part["rows"]:
        cores = row["images_a_gpu_second"] / part["images_a_core_second"]
        for data, hours in row["hours"].items():
            times = " | ".join(duration(value) for value in hours.values())
            start = f"| {row['model']} | {row['format']} | {row['gflop']:.0f} | {row['images_a_gpu_second']:.0f} "
            lines.append(f"{start}| {cores:.1f} | {data} | {times} |")
    return [*lines, ""]


def duration(hours):
    if hours < 1 / 30:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, default=Path("../shared/photos/train"))
    parser.add_argument(
        "--parts", nargs="+", choices=("speed", "memory", "paper"), default=["speed", "memory", "paper"]
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    result = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    measured = {
        "speed": lambda: speed(options.photos, options.rounds, options.workers),
        "memory": lambda: memory(options.images),
        "paper": lambda: paper(options.photos),
    }
    result |= facts()
    result |= {part: measured[part]() for part in options.parts}
    result = json.loads(json.dumps(result))  # keys as they come back from the file
    write(options.out, result, markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
