"""Adversarial training: a discriminator trained together with the tokenizer."""

from smalti.training.gan.config import AdversarialConfig
from smalti.training.gan.trainer import DiscriminatorResult, GANStep, GANTrainer, two_backward_passes

__all__ = ["AdversarialConfig", "DiscriminatorResult", "GANStep", "GANTrainer", "two_backward_passes"]
