"""The GAN trainer: the adversarial loss of the tokenizer, and the step of the discriminator.

The schedule is in `config.py`. In every step of the loop

1. `GANTrainer.begin_step(step)` makes a `GANStep` for this step;
2. `GANStep.generator_loss` adds the adversarial term to the tokenizer's loss of every piece;
3. `GANStep.update_discriminator` updates the discriminator, on the same images and their reconstructions.

Both gradients are computed with the weights of both networks before the step.
每一步：先建立本步的 `GANStep`，再为每个小份的损失加上对抗项，最后在同样的图像与重建上更新判别器。

Legend: B images of a piece, C channels, H x W pixels; a scalar has shape ().
图例：一小份 B 张图像，C 通道，H×W 像素；标量形状为 ()。
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch._functorch.config as functorch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.blocks import PatchDiscriminator
from smalti.distributed import sum_over_processes
from smalti.losses import ADVERSARIAL_LOSSES, Augmentation, LeCam, LossResult, LossTable, adaptive_weight, r1
from smalti.training.accumulation import Hidden, Part, accumulate_gradients
from smalti.training.finite_check import FiniteCheck
from smalti.training.gan.config import AdversarialConfig
from smalti.training.optimization import OptimizationConfig, step_unless
from smalti.training.runtime import Runtime
from smalti.training.state import TrainingState

SAVED_AS = "adversary"
"""Key of the discriminator and its optimizer in checkpoints."""


@dataclass(frozen=True)
class DiscriminatorResult:
    """Result of a discriminator step over all processes, with the adaptive weight of the tokenizer."""

    loss: LossResult
    """The discriminator's total loss and its terms: discriminator, r1, lecam."""
    logits_real: Float[Tensor, ""]
    """Mean logit of the images."""
    logits_fake: Float[Tensor, ""]
    """Mean logit of the reconstructions."""
    accuracy: Float[Tensor, ""]
    """Share of correctly classified patches (by the sign of the logit); 0.5 is chance level."""
    adaptive_weight: Float[Tensor, ""]
    """Adaptive weight of the adversarial loss; 0 in the warm-up, 1 if switched off."""


class DiscriminatorObjective(nn.Module):
    """The discriminator and its losses as one module: images and reconstructions in, total loss out."""

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
        """The discriminator's loss (); and for logs the mean real logit, mean fake logit and accuracy, (3,)."""
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

    def generator_loss(self, reconstruction: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """The adversarial loss () of the tokenizer: its gradient passes the discriminator, whose weights get none.

        分词器的对抗损失：梯度经过判别器，但判别器的权重不得梯度。
        """
        self.discriminator.requires_grad_(False)
        logits = self.logits(self._augmentation(reconstruction)(reconstruction))
        self.discriminator.requires_grad_(True)
        return ADVERSARIAL_LOSSES[self.config.loss].generator(logits)

    def logits(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 _ _"]:
        """Logits in fp32. The network runs in bf16 if the tokenizer does, never in fp16, as it has no loss scaler."""
        with self.runtime.autocast() if self.runtime.dtype == torch.bfloat16 else nullcontext():
            logits = self.discriminator(image.float())
        return logits.float()

    def _augmentation(self, image: Tensor) -> Augmentation:
        return Augmentation(self.config.augment, image.shape[0], image.device)


class GANTrainer:
    """The discriminator with its losses, optimizer and schedule."""

    def __init__(
        self,
        config: AdversarialConfig,
        losses: LossTable,
        state: TrainingState[Any],
        optimization: OptimizationConfig,
        runtime: Runtime,
    ):
        """
        Args:
            config: the settings.
            losses: the table with the weights of `adversarial`, `r1` and `lecam`.
            state: state of the tokenizer, on its device; its checkpoints then include the discriminator.
            optimization: number of steps, and settings common to both networks.
            runtime: device, number format, layout, processes.

        Raises:
            ValueError: the run ends before the adversarial loss starts, R1 with batch normalisation, or a frozen last
                layer of the decoder.
        """
        config.check_start(optimization.steps)
        if losses.weight("r1") and config.norm == "batch":
            raise ValueError("norm: got 'batch', expected group or none with r1: each logit must depend on one image")
        with torch.random.fork_rng(devices=[]):  # the tokenizer draws the same numbers as without a discriminator
            self.objective = DiscriminatorObjective(config, losses, state.model.image_channels, runtime)
        runtime.move(self.objective)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), betas=config.betas, fused=True)
        self.config, self.losses, self.optimization, self.runtime = config, losses, optimization, runtime
        self.scaler, self.last_layer = state.scaler, last_layer(state.model.decoder)
        self._distributed: nn.Module | None = None
        state.modules[SAVED_AS], state.optimizers[SAVED_AS] = self.objective, self.optimizer

    @property
    def discriminator(self) -> PatchDiscriminator:
        """The network."""
        return self.objective.discriminator

    @property
    def distributed(self) -> nn.Module:
        """The objective with exchange of gradients; created at first use, after a checkpoint may have been read."""
        if self._distributed is None:
            self._distributed = self.runtime.distribute(self.objective)
        return self._distributed

    def begin_step(self, step: int) -> "GANStep":
        """The GAN part of the step after `step` completed ones; call it before the first forward pass."""
        return GANStep(self, step)


class GANStep:
    """The adversarial part of one step."""

    def __init__(self, trainer: GANTrainer, step: int):
        """
        Args:
            trainer: the trainer of this step.
            step: completed steps.
        """
        self._trainer, self._config = trainer, trainer.config
        steps = trainer.optimization.steps
        self._learns = step >= self._config.start(steps) - self._config.disc_warmup
        self._ramp = self._config.ramp(step, steps)
        self._adaptive_weight: Tensor | None = None
        self._buffers = [(buffer, buffer.clone()) for buffer in trainer.objective.buffers()]

    def generator_loss(self, loss: LossResult, reconstruction: Float[Tensor, "b c h w"]) -> LossResult:
        """The tokenizer's loss, from `disc_start` on with the adversarial term.

        The adaptive weight is computed on the first piece of a step and used for all pieces of the step.

        Args:
            loss: the weighted loss of all other terms.
            reconstruction: reconstructions, with their autograd graph.
        """
        if self._ramp == 0:
            return loss
        term = self._trainer.objective.generator_loss(reconstruction)
        if self._adaptive_weight is None:
            self._adaptive_weight = self._compute_adaptive_weight(loss, term)
        weight = self._trainer.losses.weight("adversarial") * self._ramp * self._adaptive_weight
        return loss.plus("adversarial", term, weight.to(term.dtype))

    def update_discriminator(
        self, parts: Sequence[Part], reconstructions: Sequence[Tensor], lr: float, check: FiniteCheck
    ) -> DiscriminatorResult | None:
        """One step of the discriminator's optimizer; None if the discriminator does not learn yet.

        If a number of the step is not finite, the discriminator's own included, nothing changes.

        判别器的一次更新；若有数值非有限，则什么也不改变。

        Args:
            parts: the images of this process, in pieces.
            reconstructions: their reconstructions, without gradient.
            lr: the tokenizer's learning rate.
            check: receives every loss term and the gradient norm.
        """
        if not self._learns:
            return None
        trainer = self._trainer
        pairs = [replace(part, inputs=(part.inputs[0], x)) for part, x in zip(parts, reconstructions, strict=True)]
        unscaled = torch.amp.GradScaler(enabled=False)
        outputs, loss = accumulate_gradients(trainer.distributed, pairs, check, unscaled, trainer.runtime)
        norm = nn.utils.clip_grad_norm_(trainer.discriminator.parameters(), trainer.optimization.grad_clip)
        sources = [source for part in parts for source in part.sources]
        check.see({"discriminator's gradient norm": norm}, norm.reshape(1), sources)
        for group in trainer.optimizer.param_groups:
            group["lr"] = lr * self._config.lr_ratio
        step_unless(trainer.optimizer, check.bad)
        trainer.optimizer.zero_grad(set_to_none=True)
        own = torch.stack([numbers * part.fraction for numbers, part in zip(outputs, parts, strict=True)]).sum(dim=0)
        real, fake, accuracy = sum_over_processes(own)
        trainer.objective.lecam.update(real, fake)
        for buffer, before in self._buffers:
            buffer.copy_(torch.where(check.bad > 0, before, buffer))
        weight = torch.zeros_like(real) if self._adaptive_weight is None else self._adaptive_weight
        return DiscriminatorResult(loss, real, fake, accuracy, weight)

    def _compute_adaptive_weight(self, loss: LossResult, term: Tensor) -> Tensor:
        """Ratio of the gradient norms, in float64."""
        scale = self._trainer.scaler.scale(torch.ones_like(term.detach()))
        if not self._config.adaptive_weight:
            return torch.ones_like(scale).double()
        largest = self._config.max_adaptive_weight
        return adaptive_weight(loss.total, term, self._trainer.last_layer, largest, scale).double()


@contextmanager
def two_backward_passes(compiled: bool) -> Iterator[None]:
    """Allow two backward passes per forward pass inside; the first one is for the adaptive weight.

    By default the backward pass of a compiled module overwrites its inputs, so it can run only once.
    """
    with functorch.patch(donated_buffer=False) if compiled else nullcontext():
        yield


def last_layer(decoder: nn.Module) -> nn.Parameter:
    """The last weight of the decoder: decoders list their layers in the order of execution."""
    weights = [parameter for parameter in decoder.parameters() if parameter.dim() >= 2]
    if not weights or not weights[-1].requires_grad:
        raise ValueError("adversarial: got a decoder with a frozen last layer, expected a trainable one")
    return weights[-1]
