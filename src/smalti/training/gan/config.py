"""When a discriminator learns, and when and how strongly its loss counts: the settings of the adversarial phase.

A run has four parts. The step numbers are completed steps; `start` is `disc_start`, in steps:

    0                      start - disc_warmup     start                   start + disc_ramp
    |  no discriminator    |  it learns, but its   |  its loss counts,     |  its loss counts in full ...
    |                      |  loss does not count  |  more at every step   |

A discriminator that has learnt nothing pushes the decoder in a random direction, hence the warm-up. Its gradient has a
size that says nothing about the images, hence the adaptive weight. And a decoder that is suddenly pushed half as much
again, into another direction, needs a while: hence the ramp.

对抗阶段分四段：没有判别器 → 判别器先学习但其损失不计入（预热）→ 权重从 0 逐渐升高 → 全权重。未经预热的判别器只会把
解码器推向随机方向；自适应权重则防止对抗梯度压过重建梯度。

Source: the recipe of VQGAN (Esser et al. 2021, arXiv 2012.09841), section 3.1, plus warm-up and ramp. The losses are in
`smalti.losses`, their weights in the table of the training config: `adversarial` for the tokenizer's side, `r1` and
`lecam` for the discriminator's. The phase exists if and only if `adversarial` has a weight.
"""

import re
from dataclasses import dataclass
from typing import Literal

from smalti.blocks import Norm
from smalti.losses import ADVERSARIAL_LOSSES, AUGMENTATIONS, AugmentationName
from smalti.training.optimization import expect


@dataclass(frozen=True)
class AdversarialConfig:
    """The discriminator, and when its loss counts. Used only if loss_weights names adversarial."""

    loss: Literal["hinge", "non_saturating"] = "hinge"
    """Which pair of losses."""
    disc_start: int | str = "30%"
    """When the adversarial loss begins to count: completed steps, or a share of all steps such as 30%."""
    disc_warmup: int = 500
    """Steps before disc_start in which the discriminator already learns; a disc_start below that is moved up to it."""
    disc_ramp: int = 500
    """Steps after disc_start over which the weight of the adversarial loss rises from 0."""
    adaptive_weight: bool = True
    """Scale the adversarial gradient at the decoder's last layer to the length of the reconstruction loss's."""
    max_adaptive_weight: float = 1e4
    """Largest factor by which that may scale it."""
    hidden_dim: int = 64
    """Channels after the discriminator's first layer."""
    num_layers: int = 3
    """How often the discriminator halves the image; three layers judge patches of 70 x 70 pixels, two 34 x 34."""
    norm: Norm = "group"
    """Normalisation in the discriminator; with batch an image's logits depend on the others in its batch."""
    spectral_norm: bool = False
    """Divide each kernel of the discriminator by its largest singular value."""
    augment: tuple[AugmentationName, ...] = ()
    """What is changed at random in all that the discriminator sees: color, translation, cutout; for small data sets."""
    augment_pairs: bool = False
    """Change an image and its reconstruction in the same way, instead of each on its own."""
    lr_ratio: float = 1.0
    """Learning rate of the discriminator, as a multiple of the tokenizer's in the same step."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Decay of the two moving averages of the discriminator's optimizer, Adam."""

    def __post_init__(self) -> None:
        expect(self.loss in ADVERSARIAL_LOSSES, "loss", self.loss, " or ".join(ADVERSARIAL_LOSSES))
        self.start(100)
        for name in ("disc_warmup", "disc_ramp"):
            expect(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("hidden_dim", "num_layers"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        expect(self.norm in ("group", "batch", "none"), "norm", self.norm, "group, batch or none")
        for name in ("max_adaptive_weight", "lr_ratio"):
            expect(0 < getattr(self, name) < float("inf"), name, getattr(self, name), "a number above 0")
        unknown = [name for name in self.augment if name not in AUGMENTATIONS]
        expect(not unknown, "augment", list(self.augment), f"some of {', '.join(AUGMENTATIONS)}")
        expect(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers of at least 0 and below 1")

    def start(self, steps: int) -> int:
        """Completed steps after which the adversarial loss counts, in a run of `steps` steps.

        >>> AdversarialConfig(disc_start="30%").start(10_000), AdversarialConfig(disc_start=200).start(10_000)
        (3000, 500)
        """
        return max(self._wanted_start(steps), self.disc_warmup)

    def check_start(self, steps: int) -> None:
        """Refuse a run of `steps` steps in which the adversarial loss would never count.

        Raises:
            ValueError: says where the warm-up moved `disc_start` up.
        """
        start, wanted = self.start(steps), self._wanted_start(steps)
        moved = f", which disc_warmup {self.disc_warmup} moves up to {start}" if start > wanted else ""
        expect(start < steps, "disc_start", f"{self.disc_start}{moved}", f"less than the run's {steps} steps")

    def ramp(self, step: int, steps: int) -> float:
        """Factor of the adversarial loss's weight in the step that follows `step` completed ones: 0 to 1."""
        since = step - self.start(steps)
        return 0.0 if since < 0 else min(1.0, (since + 1) / (self.disc_ramp + 1))

    def _wanted_start(self, steps: int) -> int:
        """`disc_start` in steps, before the warm-up has moved it up."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)%", str(self.disc_start))
        fraction = float(match[1]) / 100 if match else None
        right = fraction <= 1 if fraction is not None else isinstance(self.disc_start, int) and self.disc_start >= 0
        expect(right, "disc_start", self.disc_start, "a number of steps, or a share of all steps from 0% to 100%")
        return int(self.disc_start) if fraction is None else round(fraction * steps)
