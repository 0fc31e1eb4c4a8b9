"""Settings of adversarial training: when the discriminator learns, and the schedule of the adversarial weight.

A run has four phases. Step numbers are completed steps; `start` is `disc_start`, in steps:

    0                      start - disc_warmup     start                   start + disc_ramp
    |  no discriminator    |  it learns,           |  adversarial weight   |  full adversarial
    |                      |  adversarial weight 0 |  rises from 0         |  weight ...

Warm-up: an untrained discriminator would push the decoder in a random direction. Adaptive weight: the scale of the
adversarial gradient has no relation to that of the reconstruction gradient. Ramp: the decoder needs time to adapt to
an additional gradient.

对抗阶段分四段：没有判别器 → 判别器先学习但其损失不计入（预热）→ 权重从 0 逐渐升高 → 全权重。未经预热的判别器只会把
解码器推向随机方向；自适应权重则防止对抗梯度压过重建梯度；逐渐升高让解码器有时间适应。

Source: the recipe of VQGAN (Esser et al. 2021, arXiv 2012.09841), section 3.1, plus warm-up and ramp. The losses are in
`smalti.losses`, their weights in the loss table of the training config: `adversarial` for the tokenizer, `r1` and
`lecam` for the discriminator. There is adversarial training if and only if `adversarial` has a weight.
"""

import re
from dataclasses import dataclass
from typing import Literal

from smalti.blocks import Norm
from smalti.checks import at_least, expect, one_of
from smalti.losses import ADVERSARIAL_LOSSES, AUGMENTATIONS, AugmentationName


@dataclass(frozen=True)
class AdversarialConfig:
    """The discriminator and its schedule. Used only if loss_weights contains adversarial."""

    loss: Literal["hinge", "non_saturating"] = "hinge"
    """Adversarial loss of discriminator and tokenizer."""
    disc_start: int | str = "30%"
    """Start of the adversarial loss: completed steps, or a fraction of all steps such as 30%."""
    disc_warmup: int = 500
    """Steps of discriminator training before disc_start; a smaller disc_start is raised to this number."""
    disc_ramp: int = 500
    """Steps after disc_start over which the adversarial weight rises from 0."""
    adaptive_weight: bool = True
    """Scale the adversarial gradient at the decoder's last layer to the norm of the reconstruction gradient."""
    max_adaptive_weight: float = 1e4
    """Maximum factor of adaptive_weight."""
    hidden_dim: int = 64
    """Channels after the discriminator's first layer."""
    num_layers: int = 3
    """Number of stride-2 layers of the discriminator. With three a logit covers 70 x 70 pixels, with two 34 x 34."""
    norm: Norm = "group"
    """Normalisation in the discriminator; with batch, logits of an image depend on the other images of the batch."""
    spectral_norm: bool = False
    """Spectral normalisation: divide each kernel of the discriminator by its largest singular value."""
    augment: tuple[AugmentationName, ...] = ()
    """Random augmentations of all discriminator inputs, for small data sets: color, translation, cutout."""
    augment_pairs: bool = False
    """Augment an image and its reconstruction in the same way instead of independently."""
    lr_ratio: float = 1.0
    """Learning rate of the discriminator, as a multiple of the tokenizer's in the same step."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Decay rates of the two moving averages of the discriminator's Adam optimizer."""

    def __post_init__(self) -> None:
        one_of(list(ADVERSARIAL_LOSSES), loss=self.loss)
        self.start(100)
        at_least(0, disc_warmup=self.disc_warmup, disc_ramp=self.disc_ramp)
        at_least(1, hidden_dim=self.hidden_dim, num_layers=self.num_layers)
        one_of(("group", "batch", "none"), norm=self.norm)
        for name in ("max_adaptive_weight", "lr_ratio"):
            expect(0 < getattr(self, name) < float("inf"), name, getattr(self, name), "a number above 0")
        unknown = [name for name in self.augment if name not in AUGMENTATIONS]
        expect(not unknown, "augment", list(self.augment), f"some of {', '.join(AUGMENTATIONS)}")
        expect(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers of at least 0 and below 1")

    def start(self, steps: int) -> int:
        """`disc_start` in completed steps, for a run of `steps` steps, after the warm-up has raised it.

        >>> AdversarialConfig(disc_start="30%").start(10_000), AdversarialConfig(disc_start=200).start(10_000)
        (3000, 500)
        """
        return max(self._wanted_start(steps), self.disc_warmup)

    def check_start(self, steps: int) -> None:
        """Refuse a run of `steps` steps that ends before the adversarial loss starts.

        Raises:
            ValueError: the run is too short; also says if the warm-up raised `disc_start`.
        """
        start, wanted = self.start(steps), self._wanted_start(steps)
        moved = f"; disc_warmup raises it to {start}" if start > wanted else ""
        expect(start < steps, "disc_start", self.disc_start, f"less than the run's {steps} steps{moved}")

    def ramp(self, step: int, steps: int) -> float:
        """Factor of the adversarial weight, 0 to 1, in the step after `step` completed ones."""
        since = step - self.start(steps)
        return 0.0 if since < 0 else min(1.0, (since + 1) / (self.disc_ramp + 1))

    def _wanted_start(self, steps: int) -> int:
        """`disc_start` in steps, before the warm-up has raised it."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)%", str(self.disc_start))
        fraction = float(match[1]) / 100 if match else None
        right = fraction <= 1 if fraction is not None else isinstance(self.disc_start, int) and self.disc_start >= 0
        expect(right, "disc_start", self.disc_start, "a number of steps, or a fraction of all steps from 0% to 100%")
        return int(self.disc_start) if fraction is None else round(fraction * steps)
