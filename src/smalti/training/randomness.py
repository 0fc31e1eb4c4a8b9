"""Random numbers of a run: seeded at its start, saved in checkpoints; the caller's generators are restored.

This covers the global generators of Python, numpy and torch, including the device's. The order of the images and their
augmentation do not use them: they depend only on the seed and the batch number.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from smalti.distributed import process_rank


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed all global generators. Process 0 draws the numbers of a single process, the others different ones."""
    if rank > 0:
        seed = int(np.random.SeedSequence((seed, rank)).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """State of all generators, as plain types and tensors that `torch.load` reads with weights_only=True."""
    name, keys, *position = np.random.get_state(legacy=True)
    numbers = (name, np.asarray(keys).tolist(), *position)
    state = {"python": random.getstate(), "numpy": numbers, "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the state of all generators."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def begin_random_numbers(seed: int, states: Sequence[dict[str, Any]], device: torch.device) -> None:
    """Set the generators before the first step: from a checkpoint, if there is one. Otherwise the first process keeps
    its state, and each other process is seeded differently.

    Args:
        seed: seed of the run.
        states: states of a checkpoint, by rank; empty for a new run.
        device: device of the run.
    """
    rank = process_rank()
    if rank < len(states):
        restore_random_state(states[rank], device)
    elif rank > 0:
        seed_everything(seed, rank)


@contextmanager
def own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Context with freshly seeded generators; the caller's states are restored afterwards."""
    former = random_state(device)
    seed_everything(seed)
    try:
        yield
    finally:
        restore_random_state(former, device)
