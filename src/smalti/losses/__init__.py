"""Loss terms, and the table of their weights."""

from smalti.losses.adaptive_weight import adaptive_weight
from smalti.losses.adversarial import ADVERSARIAL_LOSSES, AdversarialLoss
from smalti.losses.augmentation import AUGMENTATIONS, Augmentation, AugmentationName
from smalti.losses.gradient_penalty import r1
from smalti.losses.lecam import LeCam
from smalti.losses.ms_ssim import ms_ssim
from smalti.losses.perceptual import LPIPS, FeatureDistance, PerceptualDistance
from smalti.losses.reconstruction import charbonnier, l1, l2
from smalti.losses.table import (
    ADVERSARIAL_TERMS,
    NETWORK_LOSSES,
    RECONSTRUCTION_LOSSES,
    LossResult,
    LossTable,
    build_network_losses,
    check_weights,
    refuse_training_network,
)

__all__ = [
    "ADVERSARIAL_LOSSES",
    "ADVERSARIAL_TERMS",
    "AUGMENTATIONS",
    "LPIPS",
    "NETWORK_LOSSES",
    "RECONSTRUCTION_LOSSES",
    "AdversarialLoss",
    "Augmentation",
    "AugmentationName",
    "FeatureDistance",
    "LeCam",
    "LossResult",
    "LossTable",
    "PerceptualDistance",
    "adaptive_weight",
    "build_network_losses",
    "charbonnier",
    "check_weights",
    "l1",
    "l2",
    "ms_ssim",
    "r1",
    "refuse_training_network",
]
