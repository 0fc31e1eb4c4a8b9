"""The adversarial phase: a discriminator that learns beside the tokenizer, and when and how strongly it is listened to.

A run has four parts. The step numbers are completed steps; `start` is `disc_start`, in steps:

    0                      start - disc_warmup     start                   start + disc_ramp
    |  no discriminator    |  it learns, but its   |  its loss counts,     |  its loss counts in full ...
    |                      |  loss does not count  |  more at every step   |

A discriminator that has learnt nothing pushes the decoder in a random direction, hence the warm-up. Its gradient has a
size that says nothing about the images, hence the adaptive weight. And a decoder that is suddenly pushed half as much
again, into another direction, needs a while: hence the ramp.

对抗阶段分四段:没有判别器 → 判别器先学习但其损失不计入(预热)→ 权重从 0 逐渐升高 → 全权重。未经预热的判别器只会把
解码器推向随机方向;自适应权重则防止对抗梯度压过重建梯度。

Source: the recipe of VQGAN (Esser et al. 2021, arXiv 2012.09841), section 3.1, plus warm-up and ramp. The losses are in
`smalti.losses`, their weights in the table of the training config: `adversarial` for the tokenizer's side, `r1` and
`lecam` for the discriminator's. The phase exists if and only if `adversarial` has a weight.
"""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.blocks import Norm, PatchDiscriminator
from smalti.losses import (
    ADVERSARIAL_LOSSES,
    AUGMENTATIONS,
    Augmentation,
    AugmentationName,
    LeCam,
    LossResult,
    LossTable,
    adaptive_weight,
    r1,
)
from smalti.ops.processes import sum_over_processes
from smalti.tokenizers import Tokenizer
from smalti.training.accumulation import Hidden, Part, accumulate_gradients
from smalti.training.finite_check import FiniteCheck
from smalti.training.optimization import OptimizationConfig, expect, step_unless
from smalti.training.runtime import Runtime


@dataclass(frozen=True)
class AdversarialConfig:
    """The discriminator, and when it is listened to. Counts only if loss_weights names adversarial."""

    loss: Literal["hinge", "non_saturating"] = "hinge"
    """Which pair of losses."""
    disc_start: int | str = "30%"
    """When the discriminator's opinion begins to count: completed steps, or a share of all steps such as 30%."""
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
    """Normalisation in the discriminator; with batch an image's verdict depends on the others in its batch."""
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
        match = re.fullmatch(r"(\d+(?:\.\d+)?)%", str(self.disc_start))
        share = float(match[1]) / 100 if match else None
        right = share <= 1 if share is not None else isinstance(self.disc_start, int) and self.disc_start >= 0
        expect(right, "disc_start", self.disc_start, "a number of steps, or a share of them from 0% to 100%")
        wanted = int(self.disc_start) if share is None else round(share * steps)
        return max(wanted, self.disc_warmup)

    def ramp(self, step: int, steps: int) -> float:
        """Factor of the adversarial loss's weight in the step that follows `step` completed ones: 0 to 1."""
        since = step - self.start(steps)
        return 0.0 if since < 0 else min(1.0, (since + 1) / (self.disc_ramp + 1))


@dataclass(frozen=True)
class Verdict:
    """What the discriminator thought in one step, over all processes, and what that meant for the tokenizer."""

    loss: LossResult
    """The discriminator's total and its terms: discriminator, r1, lecam."""
    logits_real: Float[Tensor, ""]
    """Mean logit of the images."""
    logits_fake: Float[Tensor, ""]
    """Mean logit of the reconstructions."""
    accuracy: Float[Tensor, ""]
    """Share of patches on the right side of 0; 0.5: it cannot tell."""
    adaptive_weight: Float[Tensor, ""]
    """What the gradients' lengths called for; 0 in the warm-up, 1 where that is switched off."""


class Judgement(nn.Module):
    """The discriminator and its losses as one module: images and reconstructions in, the number to be minimised out."""

    def __init__(self, config: AdversarialConfig, losses: LossTable, image_channels: int, runtime: Runtime):
        super().__init__()
        self.discriminator = PatchDiscriminator(
            image_channels, config.hidden_dim, config.num_layers, config.norm, config.spectral_norm
        )
        self.lecam = LeCam()
        self.config, self.losses, self.runtime = config, losses, runtime

    def forward(
        self, image: Float[Tensor, "b c h w"], reconstruction: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, ""], Hidden]:
        """The discriminator's loss (); mean real and fake logit and accuracy, (3,), for whoever wants to look."""
        augmentation = self._augmentation(image)
        image = augmentation(image)
        reconstruction = (augmentation if self.config.augment_pairs else self._augmentation(image))(reconstruction)
        real, fake = self.logits(image), self.logits(reconstruction)
        own = ADVERSARIAL_LOSSES[self.config.loss].discriminator(real, fake)
        loss = LossResult(own, {"discriminator": own}, {"discriminator": 1.0})
        if weight := self.losses.weight("r1"):
            loss = loss.plus("r1", r1(self.discriminator, image), weight)
        if weight := self.losses.weight("lecam"):
            loss = loss.plus("lecam", self.lecam(real, fake), weight)
        right = torch.cat([(real > 0).flatten(), (fake < 0).flatten()]).float().mean()
        return loss.total, Hidden(loss, torch.stack([real.mean(), fake.mean(), right]).detach())

    def deceived(self, reconstruction: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """The tokenizer's loss (): its gradient goes through the discriminator, whose weights get none."""
        self.discriminator.requires_grad_(False)
        logits = self.logits(self._augmentation(reconstruction)(reconstruction))
        self.discriminator.requires_grad_(True)
        return ADVERSARIAL_LOSSES[self.config.loss].generator(logits)

    def logits(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 _ _"]:
        """In fp32. The networks run in bf16 if the tokenizer's do, but never in fp16: this one has no scaler."""
        with self.runtime.autocast() if self.runtime.dtype == torch.bfloat16 else nullcontext():
            logits = self.discriminator(image.float())
        return logits.float()

    def _augmentation(self, image: Tensor) -> Augmentation:
        return Augmentation(self.config.augment, image.shape[0], image.device)


class Adversary:
    """The discriminator with all that belongs to it: losses, optimizer, schedule."""

    def __init__(
        self,
        config: AdversarialConfig,
        losses: LossTable,
        model: Tokenizer,
        optimization: OptimizationConfig,
        runtime: Runtime,
        scaler: torch.amp.GradScaler,
    ):
        """
        Args:
            config: the settings.
            losses: the table with the weights of `adversarial`, `r1` and `lecam`.
            model: the tokenizer, on its device; its decoder's last layer tells the adaptive weight.
            optimization: number of steps, and what both sides share.
            runtime: device, number format, layout, processes.
            scaler: of the tokenizer's loss in fp16.

        Raises:
            ValueError: the loss would never count, R1 with batch normalisation, a decoder that does not learn.
        """
        start = config.start(optimization.steps)
        expect(start < optimization.steps, "disc_start", start, f"less than the run's {optimization.steps} steps")
        if losses.weight("r1") and config.norm == "batch":
            raise ValueError("r1: needs a discriminator that judges each image alone; norm must be group or none")
        if runtime.compile and config.adaptive_weight:
            # A compiled backward pass overwrites what it was given, so it can run only once; measuring runs it too.
            torch._functorch.config.donated_buffer = False
        with torch.random.fork_rng(devices=[]):  # the tokenizer draws the numbers that it would draw without
            self.modules = Judgement(config, losses, model.image_channels, runtime)
        runtime.move(self.modules)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), betas=config.betas, fused=True)
        self.config, self.losses, self.optimization, self.runtime = config, losses, optimization, runtime
        self.scaler = scaler
        self._last_layer = last_layer(model.decoder)
        self._objective: nn.Module | None = None
        self.begin(0)

    @property
    def discriminator(self) -> PatchDiscriminator:
        """The network."""
        return self.modules.discriminator

    def begin(self, step: int) -> None:
        """The step that follows `step` completed ones begins."""
        self._step = step
        self._adaptive_weight: Tensor | None = None
        self._buffers = [(buffer, buffer.clone()) for buffer in self.modules.buffers()]

    def oppose(self, loss: LossResult, reconstruction: Float[Tensor, "b c h w"]) -> LossResult:
        """The tokenizer's loss with the adversarial term in it, once that counts.

        The adaptive weight is measured on the first piece of a step and holds for all, so that the step has one weight.

        Args:
            loss: everything else, weighted.
            reconstruction: what is to look real, with its graph.
        """
        ramp = self.config.ramp(self._step, self.optimization.steps)
        if ramp == 0:
            return loss
        term = self.modules.deceived(reconstruction)
        if self._adaptive_weight is None:
            self._adaptive_weight = self._measured(loss, term)
        weight = self.losses.weight("adversarial") * ramp * self._adaptive_weight
        return loss.plus("adversarial", term, weight.to(term.dtype))

    def learn(
        self, parts: Sequence[Part], reconstructions: Sequence[Tensor], lr: float, check: FiniteCheck
    ) -> Verdict | None:
        """One step of the discriminator; None before it is its time to learn.

        Where a number of the step is not finite, the discriminator's own included, nothing has changed afterwards.

        Args:
            parts: the images of this process, in pieces.
            reconstructions: what the tokenizer made of them, without gradient.
            lr: the tokenizer's learning rate.
            check: sees every loss term, and the norm of the gradient.
        """
        if self._step < self.config.start(self.optimization.steps) - self.config.disc_warmup:
            return None
        if self._objective is None:  # not earlier: a checkpoint may have been read into the weights meanwhile
            self._objective = self.runtime.distribute(self.modules)
        pairs = [replace(part, inputs=(*part.inputs, x)) for part, x in zip(parts, reconstructions, strict=True)]
        unscaled = torch.amp.GradScaler(enabled=False)
        seen, loss = accumulate_gradients(self._objective, pairs, check, unscaled, self.runtime)
        norm = nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.optimization.grad_clip)
        keys = [key for part in parts for key in part.keys]
        check.see({"discriminator's gradient norm": norm}, norm.reshape(1), keys)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * self.config.lr_ratio
        step_unless(self.optimizer, check.bad)
        self.optimizer.zero_grad(set_to_none=True)
        own = torch.stack([numbers * part.share for numbers, part in zip(seen, parts, strict=True)]).sum(dim=0)
        real, fake, accuracy = sum_over_processes(own)
        self.modules.lecam.update(real, fake)
        for buffer, before in self._buffers:
            buffer.copy_(torch.where(check.bad > 0, before, buffer))
        weight = torch.zeros_like(real) if self._adaptive_weight is None else self._adaptive_weight
        return Verdict(loss, real, fake, accuracy, weight)

    def _measured(self, loss: LossResult, term: Tensor) -> Tensor:
        """In float64, as plain numbers are."""
        scale = self.scaler.scale(torch.ones_like(term.detach()))
        if not self.config.adaptive_weight:
            return torch.ones_like(scale).double()
        largest = self.config.max_adaptive_weight
        return adaptive_weight(loss.total, term, self._last_layer, largest, scale).double()


def last_layer(decoder: nn.Module) -> nn.Parameter:
    """The weight that makes pixels: decoders list their layers in the order in which they run."""
    weights = [parameter for parameter in decoder.parameters() if parameter.dim() >= 2]
    if not weights or not weights[-1].requires_grad:
        raise ValueError("adversarial: the decoder's last layer does not learn, there is nothing to weigh against")
    return weights[-1]
