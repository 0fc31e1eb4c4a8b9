"""Tokenize a set of images once, to train on the tokens many times.

The set is cut into shards, each a pure function of a plan and its number (`tokensets/shards.py`). A job that was killed
makes the shards that are missing; a Ray cluster makes them in any order (`tokensets/ray_engine.py`); the result is the
same.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from smalti.data import ImageSource, open_images
from smalti.data.loader import check_workers
from smalti.data.views import ViewsConfig
from smalti.evaluation.inputs import Size, target_size
from smalti.formats.storage import Storage
from smalti.formats.token_set import TokenManifest
from smalti.ops.device import find_device
from smalti.tokenizers import Tokenizer
from smalti.tokensets.assembly import finish, finished, prepare, shard_notes
from smalti.tokensets.ray_engine import WorkerPool, make_on_ray
from smalti.tokensets.shards import CPU_BATCH, Plan, make_shards
from smalti.zoo import open_tokenizer

__all__ = ["TokenizeConfig", "TokenizeResult", "tokenize"]


@dataclass(frozen=True)
class TokenizeConfig:
    """Turn a set of images into a token data set."""

    run: str
    """The tokenizer: a name of the box, a folder with a saved model, a published checkpoint, or a name on the hub."""
    data: str
    """Images: a folder, tar shards, Parquet, a hub data set, or a name such as fashion-mnist."""
    out: str
    """The token data set to make: a folder, or a URL such as s3://bucket/tokens."""
    size: Size = "trained"
    """Size of what is tokenized: a side or [height, width] (resized to cover it, then cropped), "native" for each
    image's own, "trained" for the size in RUN/train.yaml."""
    crops: int = 1
    """Crops of each image: the first is the centre, further ones lie anywhere, the same ones in every run."""
    mirrored: bool = False
    """Tokenize each crop's mirror image, too."""
    zoom: float = 1.0
    """Largest random enlargement before the crops after the first."""
    seed: int = 0
    """Decides where random crops lie."""
    shard_images: int = 1024
    """Images of one shard."""
    batch_size: int = 64
    """Images encoded together on a GPU; a CPU always takes 16, so that no option changes its tokens."""
    workers: int = 0
    """Processes that read images."""
    engine: Literal["local", "ray"] = "local"
    """Where shards are made: in this process, or on a Ray cluster."""
    ray_workers: int = 2
    """Most workers on the Ray cluster; each loads the tokenizer once."""
    device: str = "auto"
    """Where to compute: "cpu", "cuda", ..., or "auto" for cuda if there is one."""
    force: bool = False
    """Replace a token data set of other images or settings."""

    def __post_init__(self) -> None:
        for name in ("shard_images", "batch_size", "ray_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        check_workers(self.workers)
        if self.shard_images % CPU_BATCH:
            raise ValueError(f"shard_images: got {self.shard_images}, expected a multiple of {CPU_BATCH}")


@dataclass(frozen=True)
class TokenizeResult:
    """What was made."""

    out: str
    """The token data set."""
    images: int
    """Images tokenized, now or by an earlier run."""
    rows: int
    """Rows: images times views."""
    tokens: int | None
    """Tokens of a row; None where images differ in size."""
    shards: int
    """Shards, of which `made` were made now."""
    made: int
    """Shards made by this run; the others were there."""
    unreadable: dict[str, str]
    """Images that could not be read."""
    notes: dict[str, str]
    """What was wrong with labels and captions of images that this process tokenized."""
    batch_mismatch: float | None
    """See `TokenManifest.batch_mismatch`."""


def tokenize(config: TokenizeConfig, on_images: Callable[[int, int], None] | None = None) -> TokenizeResult:
    """Make a token data set, or finish one.

    Args:
        config: which tokenizer, which images, where to.
        on_images: told (images done, images in all) again and again, for a progress bar.

    Raises:
        FileNotFoundError: no such run or data.
        FileExistsError: another token data set, or something else, is in the folder, and `force` is off.
        ValueError: a bad setting, or no image could be read.
    """
    tokenizer, storage = open_tokenizer(config.run), Storage(config.out)
    source = open_images(config.data, channels=tokenizer.image_channels)
    device = _device(config)
    plan = _plan(config, tokenizer, source, device)
    numbers = range(-(-len(source) // plan.shard_images))
    if (done := finished(storage, plan)) is None:
        prepare(storage, plan, tokenizer, config.force)
        notes = shard_notes(storage)
        missing = [n for n in numbers if n not in notes]
        count = _Count(on_images, len(source), sum(len(plan.images_of(n, len(source))) for n in notes))
        if config.engine == "ray":
            pool = WorkerPool(config.ray_workers, config.workers, device.type)
            for n in make_on_ray(plan, missing, config.out, pool):
                count.add(len(plan.images_of(n, len(source))))
        else:
            make_shards(plan, missing, storage, tokenizer.to(device), source, config.workers, count.add)
        done = finish(storage, plan, source)
    else:
        missing = []
    return _result(config, done, len(missing), source)


# ---- the whole set --------------------------------------------------------------------------------------------------


class _Count:
    """Images done, for a progress bar."""

    def __init__(self, report: Callable[[int, int], None] | None, total: int, done: int):
        self.report, self.total, self.done = report, total, done
        self.add(0)

    def add(self, images: int) -> None:
        self.done += images
        if self.report is not None:
            self.report(self.done, self.total)


def _device(config: TokenizeConfig) -> torch.device:
    """Where tokens are computed. A cluster may have a GPU where this machine has none, so its word counts there."""
    elsewhere = config.engine == "ray" and config.device == "cuda"
    return torch.device("cuda") if elsewhere else find_device(config.device)


def _plan(config: TokenizeConfig, tokenizer: Tokenizer, source: ImageSource, device: torch.device) -> Plan:
    size = target_size(config.size, [config.run])
    views = ViewsConfig(None if size is None else list(size), config.crops, config.mirrored, config.zoom, config.seed)
    keys = hashlib.sha256()
    for index in range(len(source)):
        keys.update(f"{source.key(index)}\n".encode())
    return Plan(
        run=config.run,
        data=config.data,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        images_sha256=keys.hexdigest(),
        views=asdict(views),
        shard_images=config.shard_images,
        device_batch=CPU_BATCH if device.type == "cpu" else config.batch_size,
    )


def _result(config: TokenizeConfig, manifest: TokenManifest, made: int, source: ImageSource) -> TokenizeResult:
    tokens = None if manifest.grids is None else sum(math.prod(grid) for grid in manifest.grids)
    return TokenizeResult(
        out=config.out,
        images=manifest.images,
        rows=manifest.rows,
        tokens=tokens,
        shards=len(manifest.shards),
        made=made,
        unreadable=manifest.unreadable,
        notes=source.notes,
        batch_mismatch=manifest.batch_mismatch,
    )
