"""A few steps with a discriminator, by one process or as one of several; `clean_interpreter.py` runs it.

    RANK=r WORLD_SIZE=w ... python gan_steps.py OUT

OUT/r.pt gets the numbers of every step and all weights of both networks.
"""

import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch

from smalti.data import Batch
from smalti.distributed import process_count, process_rank
from smalti.losses import LossTable
from smalti.quantizers import VectorQuantizer
from smalti.tokenizers import SimpleVQVAE
from smalti.training import (
    AdversarialConfig,
    GANTrainer,
    OptimizationConfig,
    Runtime,
    TokenizerObjective,
    start_state,
    train_steps,
)
from smalti.training.runtime import join_processes

STEPS = 7


def batches(pieces):
    """This process's pieces of every batch of eight, in turn with the other processes'."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for piece in (torch.rand(8, 3, 12, 12, generator=generator) * 2 - 1).chunk(pieces)[
            process_rank() :: process_count()
        ]:
            yield Batch(piece, ("a",) * len(piece), (None,) * len(piece))


def train_with_gan(runtime: Runtime, accumulate: int = 1, spectral_norm: bool = True) -> dict:
    """Train, and say what happened."""
    torch.manual_seed(0)
    optimization = OptimizationConfig(steps=STEPS, batch_size=8, lr=1e-3, warmup_steps=0, accumulate=accumulate)
    config = AdversarialConfig(
        hidden_dim=4, num_layers=1, norm="none", spectral_norm=spectral_norm, disc_start=3, disc_warmup=2, disc_ramp=1
    )
    losses = LossTable({"l1": 1.0, "adversarial": 0.5, "r1": 1.0, "lecam": 0.1})
    model = SimpleVQVAE(16, 4, 8, norm="none", quantizer=VectorQuantizer(16, 4))
    state = start_state(model, optimization, runtime)
    gan = GANTrainer(config, losses, state, optimization, runtime)
    objective, stream = TokenizerObjective(model, losses, runtime), batches(accumulate * process_count())
    steps = train_steps(state, stream, objective, optimization, runtime, gan)
    results = list(islice(steps, STEPS))
    return {
        "numbers": [
            {
                "total": float(r.loss.total),
                **{n: float(t) for n, t in r.loss.terms.items()},
                **numbers_of(r.discriminator),
            }
            for r in results
        ],
        "tokenizer": state.model.state_dict(),
        "discriminator": gan.objective.state_dict(),
        "averaged": state.averaged.state_dict(),
    }


def numbers_of(result) -> dict[str, float]:
    if result is None:
        return {}
    numbers = {name: float(value) for name, value in asdict(result).items() if name != "loss"}
    return {**numbers, **{name: float(term) for name, term in result.loss.terms.items()}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    runtime = join_processes("cpu", "fp32", channels_last=False)
    torch.save(train_with_gan(runtime), Path(sys.argv[1]) / f"{process_rank()}.pt")
    torch.distributed.destroy_process_group()
