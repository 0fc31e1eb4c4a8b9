"""How the codebooks of `quality.py` are tuned: everybody by the same search, on images that nobody is judged on.

The search is greedy and small: first all pairs of decay and commitment, then the gradient through the quantizer, then
the threshold below which a code counts as dead; one seed, the full number of steps. Thresholds are fractions of uniform
usage, as smalti has them; vector-quantize-pytorch counts vectors a batch, so its number is the fraction times 4 (2048
vectors over 512 codes).
"""

from collections.abc import Callable
from concurrent.futures import Future
from itertools import product
from typing import Any

import vector_quantize_pytorch as peer
from torch import nn

from smalti.quantizers import DeadCodeRevival, EMAVectorQuantizer, KMeansInit, ProjectedQuantizer, VectorQuantizer

K, D = 512, 64
UNIFORM = 4
"""Vectors a code and batch, if all codes are used alike: 32 images of 8 x 8 vectors over 512 codes."""
ALIVE: dict[str, Any] = {"init": KMeansInit(), "revival": DeadCodeRevival()}
DECAYS, BETAS = (0.8, 0.9, 0.99), (0.25, 1.0)
GRADIENTS, THRESHOLDS = ("straight_through", "rotation"), (0.1, 0.25)

Settings = dict[str, Any]


class Peer(nn.Module):
    """A layer of vector-quantize-pytorch, whose results come as quantized, indices, loss (none for FSQ)."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, z):
        quantized, indices, *loss = self.layer(z)
        return quantized, loss[0].sum() if loss else z.new_zeros(()), indices


def peer_vq(**options: Any) -> Peer:
    """vector-quantize-pytorch's codebook."""
    return Peer(peer.VectorQuantize(D, K, accept_image_fmap=True, **options))


def projected(quantizer: nn.Module) -> ProjectedQuantizer:
    """One of ours between two linear layers."""
    return ProjectedQuantizer(D, quantizer)


def alive(threshold: float) -> dict[str, Any]:
    """Our start and revival."""
    return {"init": KMeansInit(), "revival": DeadCodeRevival(threshold)}


def peer_alive(decay: float, beta: float, gradient: str, threshold: float) -> dict[str, Any]:
    """The same settings in the peer's words."""
    return {
        "kmeans_init": True,
        "decay": decay,
        "commitment_weight": beta,
        "rotation_trick": gradient == "rotation",
        "threshold_ema_dead_code": threshold * UNIFORM,
    }


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "smalti EMA, tuned": lambda decay, beta, gradient, threshold: EMAVectorQuantizer(
        K, D, decay=decay, beta=beta, gradient=gradient, **alive(threshold)
    ),
    "smalti gradient, tuned": lambda decay, beta, gradient, threshold: VectorQuantizer(
        K, D, beta, gradient=gradient, **alive(threshold)
    ),
    "smalti cosine 8, tuned": lambda decay, beta, gradient, threshold: projected(
        EMAVectorQuantizer(K, 8, decay=decay, beta=beta, gradient=gradient, metric="cosine", **alive(threshold))
    ),
    "vqp, tuned": lambda **settings: peer_vq(**peer_alive(**settings)),
    "vqp cosine 8, tuned": lambda **settings: peer_vq(codebook_dim=8, use_cosine_sim=True, **peer_alive(**settings)),
}
"""Row -> quantizer of these settings. A codebook by gradient has no decay: there the first of equal runs is kept."""


def tune(start: Callable[[str, Settings, str], Future[dict]]) -> dict[str, Settings]:
    """The settings of each family with the highest PSNR on the tuning split; `start` begins a run of one set."""
    first = {"decay": 0.99, "beta": 0.25, "gradient": "straight_through", "threshold": 0.1}
    best: dict[str, tuple[float, Settings]] = {name: (float("-inf"), first) for name in FAMILIES}
    pairs = [{"decay": decay, "beta": beta} for decay, beta in product(DECAYS, BETAS)]
    for changes in (pairs, [{"gradient": g} for g in GRADIENTS[1:]], [{"threshold": t} for t in THRESHOLDS[1:]]):
        tried = [(name, best[name][1] | change) for name in FAMILIES for change in changes]
        begun = [(name, settings, start(name, settings, "tuning")) for name, settings in tried]
        for name, settings, future in begun:
            psnr = future.result()["test"]["psnr"]
            print(f"{name} {settings}: {psnr:.2f} dB", flush=True)
            best[name] = max(best[name], (psnr, settings), key=lambda found: found[0])
    return {name: settings for name, (_, settings) in best.items()}
