"""Small runs of `train_prior` on a token data set made by hand; for tests of training priors."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from smalti.formats.storage import Storage
from smalti.formats.token_set import Shard, TokenManifest, shard_name, write_manifest
from smalti.formats.token_shards import TokenRow, write_shard
from smalti.jobs.train_prior import TrainPriorConfig, TrainPriorResult, train_prior
from smalti.tokenizers import SimpleVQVAE
from smalti.training import OptimizationConfig, read_log

V, IMAGES, VIEWS = 16, 20, 2
SIDES = (1, 2, 4)


def token_set(folder: Path) -> Path:
    """Make a token data set of two classes whose tokens say which class it is; every image has two views."""
    torch.manual_seed(0)
    tokenizer = SimpleVQVAE(V, 8, 8, patch_nums=SIDES).eval()
    tokenizer.save_pretrained(folder / "tokenizer")
    rng = np.random.default_rng(0)
    grids = tuple((side, side) for side in SIDES)
    rows = []
    for image in range(IMAGES):
        label = image % 2
        for view in range(VIEWS):
            indices = rng.integers(8 * label, 8 * label + 4, 21)
            box = (0.0, 0.0, 16.0, 16.0)
            rows.append(TokenRow(f"{image}.png", (16, 16), box, grids, indices, view, bool(view), label))
    data = write_shard(rows, V)
    storage = Storage(folder)
    storage.write(shard_name(0), data)
    shard = Shard(shard_name(0), len(rows), IMAGES, hashlib.sha256(data).hexdigest())
    plain = [list(grid) for grid in grids]
    write_manifest(
        storage,
        TokenManifest(tokenizer.fingerprint, V, plain, [16, 16], {}, "photos", [shard], class_names=["even", "odd"]),
    )
    return folder


def run(tokens: Path, out: Path, steps: int = 6, **changes: object) -> TrainPriorResult:
    optimization = OptimizationConfig(steps=steps, batch_size=8, warmup_steps=2, lr=5e-3, ema_decay=0.9)
    config = TrainPriorConfig(
        str(tokens),
        str(out),
        **{  # type: ignore[arg-type]
            "prior_args": {"depth": 1, "width": 16, "num_heads": 2},
            "optimization": optimization,
            "validation": 0.2,
            "device": "cpu",
            "precision": "fp32",
            "checkpoint_every": 3,
            "log_every": 1,
        }
        | changes,
    )
    return train_prior(config)


def without_speed(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_log(folder)]
