"""LeCam regularisation: logits of real images stay near the average logit of fakes, and the other way round.

Source: Tseng et al. 2021, "Regularizing Generative Adversarial Networks under Limited Data" (arXiv 2104.03310), section
3.2. (The authors' code ignores distances on the near side; this is the formula of the paper.) See `gradient_penalty.py`
for how it differs from R1.
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

DECAY = 0.99
"""Share of the averages that a step keeps; the paper's value."""


@final
class LeCam(nn.Module):
    """E (real - a_fake)^2 + E (fake - a_real)^2, with moving averages a of the logits' means. The paper weighs it 0.001
    to 0.3.

    The averages are buffers, so that they are saved; they start at the first means they see.
    """

    real: Tensor
    fake: Tensor
    started: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, real_mean: Float[Tensor, ""], fake_mean: Float[Tensor, ""]) -> None:
        """Take in the mean logits of a step: over all processes, so that the averages are equal everywhere."""
        for average, mean in ((self.real, real_mean), (self.fake, fake_mean)):
            average.copy_(torch.where(self.started, average.lerp(mean.to(average), 1 - DECAY), mean.to(average)))
        self.started.fill_(True)

    def forward(self, real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """The penalty of logits of images and of reconstructions, against the averages so far."""
        return (real - self.fake).square().mean() + (fake - self.real).square().mean()
