"""Tokenizes on a Ray cluster: the same shards, each made by any free worker.

Ray Data distributes shard numbers to a pool of actors; the pool grows and shrinks with the work. Each actor loads
tokenizer and images once. If an actor dies, a new one makes its shard again. A shard is a pure function of plan and
number and is written completely or not at all, so the result does not change. Workers write directly to the folder of
the set, so all machines must have access to it: a shared file system or an object store.
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

USAGE_REPORTS = "RAY_USAGE_STATS_ENABLED"
"""Environment variable of Ray. A cluster started here sends no usage reports unless the user sets this to 1."""


@dataclass(frozen=True)
class WorkerPool:
    """The workers on the cluster."""

    size: int
    """Largest number of actors."""
    readers: int
    """Processes that read images, per actor; 0: the actor itself reads them."""
    device: str
    """Device of each actor: "cpu", or "cuda" for one GPU per actor."""


def make_on_ray(plan: Plan, numbers: Sequence[int], out: str, pool: WorkerPool) -> Iterator[int]:
    """Make shards on the Ray cluster of RAY_ADDRESS, else on one started here; yields each finished shard number.

    Args:
        plan: the plan of the set.
        numbers: numbers of the shards to make.
        out: path or URL of the set.
        pool: the workers.

    Raises:
        ValueError: Ray is not installed.
    """
    ray = _ray()
    if not numbers:
        return
    if not ray.is_initialized():
        os.environ.setdefault(USAGE_REPORTS, "0")
        # Ray adds the current directory to its workers' sys.path; so they cannot import files of the user by accident
        with chdir(sys.prefix):
            ray.init(log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False  # smalti shows its own
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
    """An actor: loads tokenizer and images once, then makes one shard after another."""

    def __init__(self, plan: Plan, out: str, pool: WorkerPool, folder: str):
        if Path(folder).is_dir():
            os.chdir(folder)  # so that the user's relative paths are valid
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
        raise ValueError("engine: ray is not installed; run pip install 'smalti[ray]'") from error
    return ray
