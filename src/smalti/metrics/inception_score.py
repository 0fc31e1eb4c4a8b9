"""Inception Score: high if each image clearly belongs to one class, and all images together to many classes.

Source: Salimans et al. 2016, "Improved Techniques for Training GANs" (arXiv 1606.03498), section 4:

    IS = exp(E_x KL(p(y | x) || p(y))),    p(y) the mean of p(y | x)

over ten parts of the images, in torch-fidelity's order. It uses the samples only: it needs no reference set, and cannot
measure whether the samples resemble one. `frechet.py` and `kernel_distance.py` can.

Legend: N images, K classes.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SPLITS = 10
SEED = 2020


@dataclass(frozen=True)
class InceptionScore:
    """The score of a set of images: 1 if all have the same prediction, at most the number of classes."""

    mean: float
    """Mean over the parts."""
    std: float
    """Standard deviation over the parts."""
    splits: int = SPLITS
    """Number of parts."""


def inception_score(logits_NK: Float[Tensor, "n k"]) -> InceptionScore:
    """Inception Score of the logits (N, K) of a set of images, in any order; computed in float64.

    Raises:
        ValueError: fewer images than parts.
    """
    if len(logits_NK) < SPLITS:
        raise ValueError(f"logits: got {len(logits_NK)} images, expected at least {SPLITS} for the Inception Score")
    order = np.random.RandomState(SEED).permutation(len(logits_NK))  # as in torch-fidelity: this stream never changes
    log_p_NK = logits_NK[torch.from_numpy(order)].double().log_softmax(dim=1)
    bounds = [k * len(logits_NK) // SPLITS for k in range(SPLITS + 1)]
    parts = [log_p_NK[start:end] for start, end in pairwise(bounds)]
    scores = [float((part.exp() * (part - part.exp().mean(dim=0).log())).sum(dim=1).mean().exp()) for part in parts]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
