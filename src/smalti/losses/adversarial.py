"""The two sides of the adversarial game: what discriminator and generator minimise, given logits.

    hinge            Lim & Ye 2017 (arXiv 1705.02894): logits beyond +-1 on the right side cost nothing
    non_saturating   Goodfellow et al. 2014 (arXiv 1406.2661), section 3: cross-entropy; the generator maximises
                     log D(fake), whose gradient does not vanish while the discriminator wins

The discriminator's loss is the mean of its two halves, as in VQGAN's code, so a discriminator that knows nothing (all
logits 0) costs 1 (hinge) or log 2. What keeps it in check is in `gradient_penalty.py` and `lecam.py`, how strongly the
generator listens in `adaptive_weight.py`.

A logit above 0 means "real". Logits have any shape and should be fp32: a mean over many bf16 numbers keeps two digits.
"""

from abc import ABC, abstractmethod
from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class AdversarialLoss(ABC):
    """A pair of losses."""

    @abstractmethod
    def discriminator(self, real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """What the discriminator minimises, given its logits of images and of reconstructions."""

    @abstractmethod
    def generator(self, fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """What the tokenizer minimises, given the logits of its reconstructions."""


@final
class HingeLoss(AdversarialLoss):
    """Discriminator: (E max(0, 1 - real) + E max(0, 1 + fake)) / 2. Generator: -E fake."""

    def discriminator(self, real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2

    def generator(self, fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        return -fake.mean()


@final
class NonSaturatingLoss(AdversarialLoss):
    """Discriminator: (E -log s(real) + E -log(1 - s(fake))) / 2, s the sigmoid. Generator: E -log s(fake)."""

    def discriminator(self, real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2

    def generator(self, fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        return F.softplus(-fake).mean()


ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {"hinge": HingeLoss(), "non_saturating": NonSaturatingLoss()}
"""Both pairs, by the name they have in a config."""
