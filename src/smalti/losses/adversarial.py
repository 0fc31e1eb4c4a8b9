"""Adversarial losses of discriminator and generator, computed from logits.

    hinge            Lim & Ye 2017 (arXiv 1705.02894): no loss for logits beyond +-1 on the correct side
    non_saturating   Goodfellow et al. 2014 (arXiv 1406.2661), section 3: cross-entropy; the generator maximises
                     log D(fake), whose gradient does not vanish when the discriminator is right

The discriminator's loss is the mean of its two terms, as in VQGAN's code. A discriminator without information (all
logits 0) has a loss of 1 (hinge) or log 2. `gradient_penalty.py` and `lecam.py` regularise the discriminator;
`adaptive_weight.py` sets the weight of the generator's loss.

A logit above 0 means "real". Logits have any shape and should be fp32: a mean over many bf16 numbers keeps two digits.

对抗损失：由 logit 计算判别器与生成器的损失。hinge：正确一侧超过 ±1 的 logit 没有损失。non_saturating：交叉熵；生成
器最大化 log D(fake)，判别器判断正确时其梯度也不消失。判别器的损失是其两项的均值；logit 大于 0 表示“真实”。
"""

from abc import ABC, abstractmethod
from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class AdversarialLoss(ABC):
    """A pair of losses, for discriminator and generator."""

    @abstractmethod
    def discriminator(self, real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """The discriminator's loss, given its logits for images and for reconstructions."""

    @abstractmethod
    def generator(self, fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """The tokenizer's loss, given the logits for its reconstructions."""


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
"""Both pairs, by their names in a config."""
