"""Inception Score: are single images clearly of one class, and all of them together of many?

Source: Salimans et al. 2016, "Improved Techniques for Training GANs" (arXiv 1606.03498), section 4:

    IS = exp(E_x KL(p(y | x) || p(y))),    p(y) the mean of p(y | x)

over ten parts of the images, in the order that torch-fidelity deals them in. It looks at the samples alone, so it needs
no reference set, and cannot tell whether they resemble anything. `frechet.py` and `kernel_distance.py` can.

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
    """The score of a set of images: 1 where all look alike, at most the number of classes."""

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
        raise ValueError(f"logits: got those of {len(logits_NK)} images, the Inception Score needs {SPLITS}")
    order = np.random.RandomState(SEED).permutation(len(logits_NK))  # torch-fidelity's: this stream is frozen
    log_p_NK = logits_NK[torch.from_numpy(order)].double().log_softmax(dim=1)
    bounds = [k * len(logits_NK) // SPLITS for k in range(SPLITS + 1)]
    parts = [log_p_NK[start:end] for start, end in pairwise(bounds)]
    scores = [float((part.exp() * (part - part.exp().mean(dim=0).log())).sum(dim=1).mean().exp()) for part in parts]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
