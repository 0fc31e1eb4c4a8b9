"""Tokenize on a Ray cluster: the same shards, made by whoever is free.

Ray Data hands out shard numbers to a pool of actors, each of which loads tokenizer and images once. An actor that dies
is started again, and its shard with it; since a shard is a pure function of plan and number, and is written whole or
not at all, nothing is lost and nothing is done twice that shows. Workers write to the set itself, so its folder must be
one that all machines see: a shared file system, or an object store.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from smalti.data import open_images
from smalti.formats.storage import Storage
from smalti.jobs.preparation import open_tokenizer
from smalti.jobs.tokenize import Plan, TokenizeConfig, make_shards
from smalti.training.runtime import find_device

__all__ = ["make_on_ray"]


def make_on_ray(config: TokenizeConfig, plan: Plan, numbers: Sequence[int]) -> Iterator[int]:
    """Make shards on the Ray cluster at hand (RAY_ADDRESS, else one started here); yields each when it is finished.

    Raises:
        ValueError: Ray is not installed.
    """
    ray = _ray()
    if not numbers:
        return
    if not ray.is_initialized():
        ray.init(ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
    shards = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
    on_gpu = find_device(config.device).type == "cuda"
    made = shards.map_batches(
        _Worker,
        fn_constructor_args=(config.out, asdict(plan), config.device),
        batch_size=1,
        concurrency=(1, min(config.ray_workers, len(numbers))),
        num_cpus=1,
        num_gpus=1 if on_gpu else 0,
    )
    for row in made.iter_rows():
        yield int(row["shard"])


class _Worker:
    """An actor: loads everything once, then makes shard after shard."""

    def __init__(self, out: str, plan: dict[str, Any], device: str):
        self.plan, self.storage = Plan(**plan), Storage(out)
        self.tokenizer = open_tokenizer(self.plan.run).to(find_device(device))
        self.source = open_images(self.plan.data, channels=self.tokenizer.image_channels)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        numbers = [int(number) for number in batch["shard"]]
        make_shards(self.plan, numbers, self.storage, self.tokenizer, self.source)
        return {"shard": numbers}


def _ray() -> Any:
    try:
        import ray.data
    except ImportError as error:
        raise ValueError("engine: ray is not installed: pip install 'smalti[ray]'") from error
    return ray
