"""Loss terms, and the one table where they are weighted."""

from smalti.losses.ms_ssim import ms_ssim
from smalti.losses.perceptual import LPIPS, FeatureDistance, PerceptualDistance
from smalti.losses.reconstruction import charbonnier, l1, l2
from smalti.losses.table import (
    NETWORK_LOSSES,
    RECONSTRUCTION_LOSSES,
    LossResult,
    LossTable,
    build_network_losses,
    check_weights,
    refuse_training_network,
)

__all__ = [
    "LPIPS",
    "NETWORK_LOSSES",
    "RECONSTRUCTION_LOSSES",
    "FeatureDistance",
    "LossResult",
    "LossTable",
    "PerceptualDistance",
    "build_network_losses",
    "charbonnier",
    "check_weights",
    "l1",
    "l2",
    "ms_ssim",
    "refuse_training_network",
]
