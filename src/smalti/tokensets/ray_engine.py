"""Tokenize on a Ray cluster: the same shards, made by whoever is free.

Ray Data hands out shard numbers to a pool of actors that grows and shrinks with the work; each loads tokenizer and
images once. An actor that dies is started again, and its shard with it; since a shard is a pure function of plan and
number, and is written whole or not at all, nothing is lost and nothing is done twice that shows. Workers write to the
set itself, so its folder must be one that all machines see: a shared file system, or an object store.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.data import open_images
from smalti.formats.storage import Storage
from smalti.tokensets.shards import Plan, make_shards
from smalti.zoo import open_tokenizer

__all__ = ["WorkerPool", "make_on_ray"]

USAGE_REPORTS = "RAY_USAGE_STATS_ENABLED"
"""A cluster that is started here reports to nobody, unless the user has set this to 1."""


@dataclass(frozen=True)
class WorkerPool:
    """Who works."""

    size: int
    """Most actors."""
    readers: int
    """Processes that read images, for each actor; 0: the actor itself."""
    device: str
    """Where they compute: "cpu", or "cuda" for a GPU each."""


def make_on_ray(plan: Plan, numbers: Sequence[int], out: str, pool: WorkerPool) -> Iterator[int]:
    """Make shards on the Ray cluster at hand (RAY_ADDRESS, else one started here); yields each when it is finished.

    Args:
        plan: what to make.
        numbers: the shards.
        out: the set, a path or URL.
        pool: who makes them.

    Raises:
        ValueError: Ray is not installed.
    """
    ray = _ray()
    if not numbers:
        return
    if not ray.is_initialized():
        os.environ.setdefault(USAGE_REPORTS, "0")
        with chdir(sys.prefix):  # Ray puts the current directory on its workers' path: files of the user's would run
            ray.init(log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one already
    shards = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
    made = shards.map_batches(
        _Worker,
        fn_constructor_args=(plan, out, pool, str(Path.cwd())),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(pool.size, len(numbers))),
        num_cpus=1 + pool.readers,
        num_gpus=1 if pool.device == "cuda" else 0,
    )
    for row in made.iter_rows():
        yield int(row["shard"])


class _Worker:
    """An actor: loads everything once, then makes shard after shard."""

    def __init__(self, plan: Plan, out: str, pool: WorkerPool, folder: str):
        if Path(folder).is_dir():
            os.chdir(folder)  # relative paths mean here what they mean to the user
        self.plan, self.storage, self.readers = plan, Storage(out), pool.readers
        self.tokenizer = open_tokenizer(self.plan.run).to(pool.device)
        self.source = open_images(self.plan.data, channels=self.tokenizer.image_channels)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        numbers = [int(number) for number in batch["shard"]]
        make_shards(self.plan, numbers, self.storage, self.tokenizer, self.source, self.readers)
        return {"shard": numbers}


def _ray() -> Any:
    try:
        import ray.data
    except ImportError as error:
        raise ValueError("engine: ray is not installed: pip install 'smalti[ray]'") from error
    return ray
