"""LeCam regularisation: keeps logits of real images near the average logit of fake ones, and vice versa.

Source: Tseng et al. 2021, "Regularizing Generative Adversarial Networks under Limited Data" (arXiv 2104.03310), section
3.2. This is the paper's formula; the authors' code ignores distances on the near side. See `gradient_penalty.py` for
the difference from R1.

LeCam 正则化：使真实图像的 logit 接近虚假图像的平均 logit，反之亦然。这里采用论文的公式。与 R1 的区别见
`gradient_penalty.py`。
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

DECAY = 0.99
"""Decay of the moving averages; the paper's value."""


@final
class LeCam(nn.Module):
    """E (real - a_fake)^2 + E (fake - a_real)^2, where a are moving averages of the mean logits. The paper uses weights
    from 0.001 to 0.3.

    The averages are buffers, so they are saved. They start at the first mean logits.
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
        """Update the averages with the mean logits of a step, taken over all processes, so that all stay equal."""
        for average, mean in ((self.real, real_mean), (self.fake, fake_mean)):
            average.copy_(torch.where(self.started, average.lerp(mean.to(average), 1 - DECAY), mean.to(average)))
        self.started.fill_(True)

    def forward(self, real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """The penalty for logits of images and of reconstructions, relative to the current averages."""
        return (real - self.fake).square().mean() + (fake - self.real).square().mean()
