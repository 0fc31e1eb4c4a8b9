"""The Fréchet distance between two sets of features: the formula of FID, for features of any network.

Both sets are modelled as Gaussians. The squared distance is

    |m1 - m2|² + tr S1 + tr S2 - 2 tr (S1 S2)^½

S1 S2 is not symmetric. The usual matrix square root of it turns rounding errors into imaginary parts, which are then
dropped or suppressed by an epsilon. Its eigenvalues equal those of S1^½ S2 S1^½, which is symmetric and positive. This
form is exact and real, also for sets smaller than the number of features.

Source: Dowson and Landau 1982; Heusel et al. 2017, "GANs trained by a two time-scale update rule" (FID).
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from smalti.metrics.feature_statistics import FeatureStatistics


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """Squared Fréchet distance of two sets of features, at least 0, in float64.

    Raises:
        ValueError: features of different networks, or fewer than two images in a set.
    """
    one.check_same_network(other)
    for statistics in (one, other):
        if statistics.count < 2:
            raise ValueError(f"statistics: got {statistics.count} images, expected at least 2 for a covariance")
    shift = one.mean - other.mean
    root = _square_root(one.covariance)
    product = root @ other.covariance @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = shift @ shift + one.covariance.trace() + other.covariance.trace() - 2 * overlap
    return max(0.0, float(distance))


def _square_root(matrix_FF: Float64[Tensor, "f f"]) -> Float64[Tensor, "f f"]:
    """Symmetric positive square root of a symmetric positive matrix. Eigenvalues rounded below zero count as zero."""
    values_F, vectors_FF = torch.linalg.eigh(matrix_FF)
    return (vectors_FF * values_F.clamp(min=0).sqrt()) @ vectors_FF.T
