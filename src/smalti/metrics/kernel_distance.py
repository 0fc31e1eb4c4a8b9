"""The kernel distance between two sets of features: the K and the D of KID, beside the Fréchet distance.

It is the squared maximum mean discrepancy with the kernel (x · y / F + 1)³, by its unbiased estimator, so that its mean
does not depend on the number of images; it may come out slightly below zero. As everybody does, the mean over 100
random subsets of 1000 images is reported. The subsets are those that torch-fidelity draws (same generator, same seed);
of fewer than 1000 images the subset is all of them, and one is enough.

Source: Bińkowski et al. 2018, "Demystifying MMD GANs" (KID).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance and how it was taken."""

    mean: float
    """Mean over the subsets; 0 for equal distributions, slightly negative values are possible."""
    std: float
    """Standard deviation over the subsets."""
    subsets: int
    """Number of subsets."""
    subset_size: int
    """Images of each set in a subset."""


def kernel_distance(
    one_NF: Float32[Tensor, "n f"], other_MF: Float32[Tensor, "m f"], subset_size: int = SUBSET_SIZE
) -> KernelDistance:
    """Kernel distance of two sets of features (N, F) and (M, F), computed in float64.

    Args:
        one_NF: features, one row an image.
        other_MF: features of the same network.
        subset_size: images in a subset, at most; at least 2.

    Raises:
        ValueError: fewer than two images in a set, or a `subset_size` below 2.
    """
    size = min(subset_size, len(one_NF), len(other_MF))
    if size < 2:
        raise ValueError(f"features: {len(one_NF)} and {len(other_MF)} images in subsets of {subset_size}, needs 2")
    subsets = 1 if size == len(one_NF) == len(other_MF) else SUBSETS
    generator = np.random.RandomState(SEED)  # torch-fidelity's: its stream is frozen, unlike default_rng's
    distances = []
    for _ in range(subsets):
        x = one_NF[torch.from_numpy(generator.choice(len(one_NF), size, replace=False))].double()
        y = other_MF[torch.from_numpy(generator.choice(len(other_MF), size, replace=False))].double()
        distances.append(_squared_mmd(x, y))
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)), subsets, size)


def _squared_mmd(x_NF: Tensor, y_NF: Tensor) -> float:
    """Unbiased: a pair of an image with itself does not count within a set."""
    n = len(x_NF)
    within = [(kernel.sum() - kernel.trace()) / (n * (n - 1)) for kernel in (_kernel(x_NF, x_NF), _kernel(y_NF, y_NF))]
    return float(within[0] + within[1] - 2 * _kernel(x_NF, y_NF).mean())


def _kernel(x_NF: Tensor, y_MF: Tensor) -> Tensor:
    return (x_NF @ y_MF.T / x_NF.shape[1] + 1) ** 3
