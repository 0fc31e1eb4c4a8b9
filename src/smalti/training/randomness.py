"""Random numbers of a run: seeded at its start, written into checkpoints, and the caller's own left as they were.

Covered are the global generators of Python, numpy and torch, the device's included. The order of the images and their
augmentation need none of them: they are functions of the seed and the batch number.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from smalti.distributed import process_rank


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed all global generators. Process 0 draws what a single process would, the others each their own numbers."""
    if rank > 0:
        seed = int(np.random.SeedSequence((seed, rank)).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Where all generators stand, as plain types and tensors that `torch.load` reads with weights_only=True."""
    name, keys, *position = np.random.get_state(legacy=True)
    numbers = (name, np.asarray(keys).tolist(), *position)
    state = {"python": random.getstate(), "numpy": numbers, "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put all generators where they stood."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def begin_random_numbers(seed: int, states: Sequence[dict[str, Any]], device: torch.device) -> None:
    """Before the first step: the numbers of a checkpoint go on; else the first process goes on with those that it
    draws already, and each other has its own.

    Args:
        seed: that of the run.
        states: of a checkpoint, by rank; empty at the beginning.
        device: of the run.
    """
    rank = process_rank()
    if rank < len(states):
        restore_random_state(states[rank], device)
    elif rank > 0:
        seed_everything(seed, rank)


@contextmanager
def own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Everything inside draws from generators with this seed; the caller's go on afterwards as if nothing had been."""
    former = random_state(device)
    seed_everything(seed)
    try:
        yield
    finally:
        restore_random_state(former, device)
