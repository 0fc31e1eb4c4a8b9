"""Loading side by side: our training stream from a folder, tar shards and Parquet, and what one writes by hand.

    python benchmarks/loader.py [--photos ../shared/photos/train] [--sizes 64 128 256] [--rounds 3] [--out loader.json]

Every contestant decodes, crops at random (zoom 1 to 2), flips and collates the same photographs in batches of 64; the
plain one is a `torch.utils.data.Dataset` around Pillow in a shuffling `DataLoader`. Nothing is kept between epochs.
Contestants take turns; a row has the images a second of the best round, from the third batch on, and the median over
the rounds of ours / plain. `--out` adds to the rows that the file already has for other sizes.
"""

import argparse
import json
import os
import tarfile
import tempfile
import time
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import pyarrow
import torch
from PIL import Image
from pyarrow import parquet
from report import Terms, beginning, facts, ratio, write
from torch.utils.data import DataLoader, Dataset

from smalti.data import TransformConfig, open_images, training_batches

BATCH, WARM_UP, TIMED = 64, 2, 16
SOURCES = ("folder", "tar", "parquet")


class Plain(Dataset):
    """What one writes first: Pillow, one image an item, floats before collating."""

    def __init__(self, folder, size):
        self.paths = sorted(Path(folder).iterdir())
        self.size = size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        size = self.size
        with Image.open(self.paths[index]) as file:
            picture = file.convert("RGB")
        zoom, down, right, mirror = np.random.random(4)
        side = min(picture.size) / 2**zoom
        left, top = right * (picture.width - side), down * (picture.height - side)
        picture = picture.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
        if mirror < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def store(photos, folder):
    """The same files as three tar shards and as a Parquet file with row groups of 100."""
    paths = sorted(Path(photos).iterdir())
    for number in range(3):
        with tarfile.open(folder / f"shard-{number}.tar", "w") as shard:
            for path in paths[number::3]:
                shard.add(path, path.name)
    table = pyarrow.table({"image": [path.read_bytes() for path in paths]})
    parquet.write_table(table, folder / "photos.parquet", row_group_size=100)
    return {
        "folder": str(photos),
        "tar": str(folder / "shard-{0..2}.tar"),
        "parquet": str(folder / "photos.parquet"),
    }


def stream_of(name, places, size, workers):
    """An endless stream of batches."""
    if name == "plain":
        loader = DataLoader(
            Plain(places["folder"], size),
            BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=True,
            multiprocessing_context="forkserver",
        )
        return chain.from_iterable(repeat(loader))
    transform = TransformConfig(size=size, crop="random", zoom=2.0, flip=True)
    source = open_images(places[name])
    return (batch.image for batch in training_batches(source, transform, BATCH, 0, workers=workers, cache_bytes=0))


def images_per_second(name, places, size, workers):
    stream = stream_of(name, places, size, workers)
    for _ in islice(stream, WARM_UP):
        pass
    start = time.perf_counter()
    for image in islice(stream, TIMED):
        assert image.shape == (BATCH, 3, size, size)
    return BATCH * TIMED / (time.perf_counter() - start)


def compare(places, size, workers, rounds):
    contestants = (*SOURCES, "plain")
    speeds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name in contestants:
            speeds[name].append(images_per_second(name, places, size, workers))
    ratios = {name: ratio(speeds[name], speeds["plain"]) for name in SOURCES}
    return {
        "size": size,
        "workers": workers,
        "images_per_second": {name: round(max(values)) for name, values in speeds.items()},
        "times_plain": {name: round(ratio, 2) for name, ratio in ratios.items()},
    }


def markdown(rows):
    lines = ["| size | workers | folder | tar | Parquet | plain | folder / plain |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        speed = row["images_per_second"]
        numbers = (*(speed[name] for name in (*SOURCES, "plain")), row["times_plain"]["folder"])
        lines.append(f"| {row['size']} | {row['workers']} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


TERMS = Terms(
    compared="Images a second of our training stream from a folder, tar shards and a Parquet file, and of a plain "
    "`DataLoader` around Pillow on the folder. The best round, from the third batch on; ratios: medians of the rounds.",
    number_format="uint8 from the files; every batch arrives as fp32 in -1 to 1. Ours passes uint8 between processes, "
    "the plain one floats.",
    layout="Contiguous (B, C, H, W).",
    threads="One in the main process, and as many worker processes as the row says.",
    tuning="Nobody for these photographs.",
    not_shown="How fast training is: that depends on the model. Nor anything about disks: the files lie in the page "
    "cache. Ours decodes JPEGs at a reduced size where that loses hardly anything, the plain one in full.",
)


def document(result):
    photographs = f"{result['photographs']} photographs, batches of {result['batch']}, images a second:"
    return "\n".join([*beginning("Loading images", TERMS, result), photographs, "", markdown(result["rows"])]) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, default=Path("../shared/photos/train"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        places = store(options.photos, Path(folder))
        for size in options.sizes:
            rows += [compare(places, size, workers, options.rounds) for workers in options.workers]
    if options.out:
        if options.out.exists():
            rows += [row for row in json.loads(options.out.read_text())["rows"] if row["size"] not in options.sizes]
        rows.sort(key=lambda row: (row["size"], row["workers"]))
        result = {
            **facts("pillow", "pyarrow"),
            "load": os.getloadavg(),
            "photographs": len(list(options.photos.iterdir())),
            "batch": BATCH,
            "rows": rows,
        }
        write(options.out, result, document(result))
    print(markdown(rows))


if __name__ == "__main__":
    main()
