"""The kernel distance between two sets of features: the formula of KID, for features of any network.

It is the squared maximum mean discrepancy with the kernel (x · y / F + 1)³. The estimator is unbiased: its mean does
not depend on the number of images, and it may be slightly below zero. As usual, the mean over 100 random subsets of
1000 images is reported. The subsets equal torch-fidelity's (same generator, same seed). With fewer than 1000 images,
there is one subset with all images.

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
    """A kernel distance and its subsets."""

    mean: float
    """Mean over the subsets; 0 for equal distributions, slightly negative values are possible."""
    std: float
    """Standard deviation over the subsets."""
    subsets: int
    """Number of subsets."""
    subset_size: int
    """Images per set in each subset."""


def kernel_distance(
    one_NF: Float32[Tensor, "n f"], other_MF: Float32[Tensor, "m f"], subset_size: int = SUBSET_SIZE
) -> KernelDistance:
    """Kernel distance of two sets of features (N, F) and (M, F), computed in float64.

    Args:
        one_NF: features, one row per image.
        other_MF: features of the same network.
        subset_size: maximum number of images in a subset; at least 2.

    Raises:
        ValueError: fewer than two images in a set, or a `subset_size` below 2.
    """
    size = min(subset_size, len(one_NF), len(other_MF))
    if size < 2:
        raise ValueError(
            f"features: got {len(one_NF)} and {len(other_MF)} images, subsets of {subset_size}, expected at least 2"
        )
    subsets = 1 if size == len(one_NF) == len(other_MF) else SUBSETS
    generator = np.random.RandomState(SEED)  # as in torch-fidelity: this stream never changes, unlike default_rng's
    distances = []
    for _ in range(subsets):
        x = one_NF[torch.from_numpy(generator.choice(len(one_NF), size, replace=False))].double()
        y = other_MF[torch.from_numpy(generator.choice(len(other_MF), size, replace=False))].double()
        distances.append(_squared_mmd(x, y))
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)), subsets, size)


def _squared_mmd(x_NF: Tensor, y_NF: Tensor) -> float:
    """Unbiased estimate: pairs of an image with itself are excluded."""
    n = len(x_NF)
    within = [(kernel.sum() - kernel.trace()) / (n * (n - 1)) for kernel in (_kernel(x_NF, x_NF), _kernel(y_NF, y_NF))]
    return float(within[0] + within[1] - 2 * _kernel(x_NF, y_NF).mean())


def _kernel(x_NF: Tensor, y_MF: Tensor) -> Tensor:
    return (x_NF @ y_MF.T / x_NF.shape[1] + 1) ** 3
