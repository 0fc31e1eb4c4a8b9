"""Tokenize a set of images once, to train on the tokens many times.

The set is split into shards; each is a pure function of a plan and the shard's number (`tokensets/shards.py`). A job
that was killed makes only the missing shards when it is started again. A Ray cluster makes shards in any order
(`tokensets/ray_engine.py`). The result is the same.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from smalti.checks import at_least
from smalti.data import ImageSource, open_images
from smalti.data.loader import check_workers
from smalti.data.views import ViewsConfig
from smalti.evaluation.inputs import Size, target_size
from smalti.formats.storage import Storage
from smalti.formats.token_set import TokenManifest
from smalti.ops.device import find_device
from smalti.tokenizers import Tokenizer
from smalti.tokensets.assembly import check_free, finish, finished, prepare, shard_notes
from smalti.tokensets.ray_engine import WorkerPool, make_on_ray
from smalti.tokensets.shards import CPU_BATCH, Plan, make_shards
from smalti.zoo import open_tokenizer


@dataclass(frozen=True)
class TokenizeConfig:
    """Tokenize a set of images once, into a token data set for training."""

    run: str
    """Tokenizer: a built-in name, a folder with a saved model, a published checkpoint, or a name on the Hugging Face
    hub."""
    data: str
    """Images: a folder, tar shards, Parquet, a data set on the hub, or a name such as fashion-mnist."""
    out: str
    """Token data set to write: a folder, or a URL such as s3://bucket/tokens."""
    size: Size = "trained"
    """Size of the crops: a side or [height, width] (the image is resized, then cropped); "native": each image's own
    size; "trained": the size in RUN/train.yaml."""
    crops: int = 1
    """Crops per image: the first at the centre, the others at random positions, the same in every run."""
    mirrored: bool = False
    """Also tokenize the mirror image of each crop."""
    zoom: float = 1.0
    """Largest random enlargement of the image for the random crops."""
    seed: int = 0
    """Seed of the random crops."""
    shard_images: int = 1024
    """Images per shard."""
    batch_size: int = 64
    """Batch size on a GPU. A CPU always uses 16, so that no option changes the tokens."""
    workers: int = 0
    """Processes that read images."""
    engine: Literal["local", "ray"] = "local"
    """Where shards are made: in this process, or on a Ray cluster."""
    ray_workers: int = 2
    """Largest number of workers on the Ray cluster; each loads the tokenizer once."""
    device: str = "auto"
    """Device to compute on: "cpu", "cuda", ...; "auto": cuda if available."""
    force: bool = False
    """Replace a token data set of other images or settings."""

    def __post_init__(self) -> None:
        at_least(1, shard_images=self.shard_images, batch_size=self.batch_size, ray_workers=self.ray_workers)
        check_workers(self.workers)
        if self.shard_images % CPU_BATCH:
            raise ValueError(f"shard_images: got {self.shard_images}, expected a multiple of {CPU_BATCH}")


@dataclass(frozen=True)
class TokenizeResult:
    """The finished token data set."""

    out: str
    """Folder or URL of the token data set."""
    images: int
    """Images tokenized, by this run or an earlier one."""
    rows: int
    """Number of rows: images times views."""
    tokens: int | None
    """Tokens per row; None if images differ in size."""
    shards: int
    """Number of shards."""
    made: int
    """Shards made by this run; the others existed already."""
    unreadable: dict[str, str]
    """Image → why it could not be read."""
    notes: dict[str, str]
    """Image → problem with its label or caption, for the images that this process tokenized."""
    batch_mismatch: float | None
    """See `TokenManifest.batch_mismatch`."""


def tokenize(config: TokenizeConfig, on_images: Callable[[int, int], None] | None = None) -> TokenizeResult:
    """Make a token data set, or finish an interrupted one.

    Args:
        config: which tokenizer, images and output.
        on_images: called with (images done, images in all) repeatedly, for a progress bar.

    Raises:
        FileNotFoundError: no such run or data.
        FileExistsError: the folder holds another token data set or other files, and `force` is off.
        ValueError: a bad setting, or no image could be read.
    """
    storage = Storage(config.out)
    check_free(storage, config.force)
    tokenizer = open_tokenizer(config.run)
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
    """Counts finished images, for a progress bar."""

    def __init__(self, report: Callable[[int, int], None] | None, total: int, done: int):
        self.report, self.total, self.done = report, total, done
        self.add(0)

    def add(self, images: int) -> None:
        self.done += images
        if self.report is not None:
            self.report(self.done, self.total)


def _device(config: TokenizeConfig) -> torch.device:
    """Where tokens are computed. A Ray cluster may have a GPU that this machine lacks: "cuda" is not checked."""
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
