"""A few training steps of many quantizers, by one process or as one of several; `clean_interpreter.py` runs it.

    RANK=r WORLD_SIZE=w ... python learning_together.py OUT

A case is a linear encoder and a quantizer behind it, trained by plain SGD under DistributedDataParallel on this
process's part of every batch. OUT/r.pt gets, for each case, the losses of every step and all weights and buffers.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smalti.quantizers import (
    BinarySphericalQuantizer,
    DeadCodeRevival,
    EMAVectorQuantizer,
    GroupedQuantizer,
    IndexBackpropagationQuantizer,
    KMeansInit,
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
)

STEPS, BATCH, CHANNELS, SIDE = 8, 8, 8, 4
ALIVE = {"init": KMeansInit(batches=2, iterations=5), "revival": DeadCodeRevival(threshold=0.6), "decay": 0.5}
"""Codes die soon and often, so that every step revives some."""
QUIET = {"init": KMeansInit(batches=2, iterations=5), "decay": 0.5}


def cases() -> dict[str, Quantizer]:
    return {
        "vector": VectorQuantizer(24, 8, **ALIVE),
        "vector without revival": VectorQuantizer(24, 8, **QUIET),
        "cosine": VectorQuantizer(24, 8, metric="cosine", **ALIVE),
        "ema": EMAVectorQuantizer(24, 8, **ALIVE),
        "ema without revival": EMAVectorQuantizer(24, 8, **QUIET),
        "residual": ResidualQuantizer([EMAVectorQuantizer(12, 8, **ALIVE), EMAVectorQuantizer(12, 8, **ALIVE)]),
        "residual, one codebook": ResidualQuantizer([VectorQuantizer(24, 8, **ALIVE)], num_quantizers=2),
        "multi-scale": MultiScaleQuantizer(24, 8, (1, 2, 4), quantizer=VectorQuantizer(24, 8, **ALIVE)),
        "multi-scale ema": MultiScaleQuantizer(24, 8, (1, 2, 4), quantizer=EMAVectorQuantizer(24, 8, **ALIVE)),
        "multi-scale ema, a codebook a scale": MultiScaleQuantizer(
            24, 8, (1, 2, 4), num_codebooks=3, quantizer=EMAVectorQuantizer(24, 8, **ALIVE)
        ),
        "grouped": GroupedQuantizer([EMAVectorQuantizer(12, 4, **ALIVE), EMAVectorQuantizer(12, 4, **ALIVE)]),
        "projected": ProjectedQuantizer(8, VectorQuantizer(24, 4, **ALIVE)),
        "simvq": SimVQ(24, 8),
        "ibq": IndexBackpropagationQuantizer(24, 8, entropy_weight=1.0, entropy_temperature=1.0),
        "lfq": LookupFreeQuantizer(8, entropy_weight=1.0, temperature=1.0, group_size=4),
        "bsq": BinarySphericalQuantizer(8, entropy_weight=1.0, group_size=4),
    }


class Net(nn.Module):
    def __init__(self, quantizer: Quantizer):
        super().__init__()
        self.encoder, self.quantizer = nn.Conv2d(CHANNELS, 8, 1), quantizer

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        output = self.quantizer(self.encoder(x), mask)
        return output.loss + F.mse_loss(output.quantized, x)


def batch(step: int) -> Tensor:
    """The joined batch of a step: a few clumps of vectors, other ones later, so that codes are left behind."""
    generator = torch.Generator().manual_seed(step)
    centres = torch.randn(6, CHANNELS, generator=torch.Generator().manual_seed(100 + step // 3)) * 2
    chosen = torch.randint(6, (BATCH, SIDE, SIDE), generator=generator)
    noise = torch.randn(BATCH, CHANNELS, SIDE, SIDE, generator=generator)
    return centres[chosen].movedim(-1, 1) + 0.3 * noise


def learn(quantizer: Quantizer, own: slice, world: int, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Train on the rows `own` of every batch. As in the training loop, each row counts alike, whoever holds it."""
    torch.manual_seed(1)
    net = Net(quantizer).train()
    model = net if world == 1 else DistributedDataParallel(net, broadcast_buffers=False, find_unused_parameters=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for step in range(STEPS):
        rows = batch(step)[own]
        share = len(rows) / BATCH
        loss = model(rows, None if mask is None else mask[own])
        (loss * share * world).backward()
        total = loss.detach() * share
        if world > 1:
            dist.all_reduce(total)
        losses.append(total)
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": torch.stack(losses), **net.state_dict()}


def half_masked() -> Tensor:
    """The second half of every batch is padding: the second process has nothing to learn from."""
    mask = torch.zeros(BATCH, SIDE, SIDE, dtype=torch.bool)
    mask[: BATCH // 2] = True
    return mask


def everything(rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    parts = {1: [BATCH], 2: [BATCH // 2, BATCH // 2]}[world]
    uneven = {1: [BATCH], 2: [BATCH - 3, 3]}[world]
    results = {}
    for name in cases():
        for kind, sizes in (("even", parts), ("uneven", uneven)):
            torch.manual_seed(0)
            start = sum(sizes[:rank])
            results[f"{name}, {kind}"] = learn(cases()[name], slice(start, start + sizes[rank]), world)
    for name in ("ema", "lfq"):  # all vectors of a process are invalid: it waits for nobody, and nobody for it
        torch.manual_seed(0)
        own = slice(rank * parts[0], (rank + 1) * parts[0])
        results[f"{name}, masked"] = learn(cases()[name], own, world, half_masked())
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    if rank == 0:  # an evaluation in one process waits for nobody
        evaluated = EMAVectorQuantizer(24, 8, **ALIVE).eval()
        assert evaluated(batch(0)).quantized.shape == batch(0).shape
    torch.save(everything(rank, dist.get_world_size()), Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()
