"""Training objectives: model and loss as one module, one class for tokenizers and one for priors.

The loop (`loop.py`) calls an objective once per piece of a batch. DistributedDataParallel wraps the whole objective, so
every pass of the model takes part in the exchange of gradients.
训练目标：模型与损失合为一个模块；循环对每个小份调用一次。

Legend: B images of a piece, C channels, H x W pixels, L tokens of an image; a scalar has shape ().
图例：一小份 B 张图像，C 通道，H×W 像素，每张 L 个词元；标量形状为 ()。
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from smalti.data import Batch, TokenBatch
from smalti.losses import LossResult, LossTable
from smalti.priors import Prior
from smalti.quantizers import QuantizerOutput
from smalti.tokenizers import Tokenizer, TokenizerOutput
from smalti.training.accumulation import Hidden
from smalti.training.gan import GANStep
from smalti.training.runtime import Runtime


class Objective(nn.Module, ABC):
    """A model and its loss. `forward` takes `inputs` and returns the total loss () and, as `Hidden`, its terms."""

    @abstractmethod
    def inputs(self, piece: Any) -> tuple[Tensor, ...]:
        """Arguments of `forward` from a piece of a batch, on the device."""

    @abstractmethod
    def sources(self, piece: Any) -> Sequence[str]:
        """Origin of the piece, for the error message about a non-finite loss."""


@dataclass(frozen=True)
class TokenizerPass:
    """Input and output of a tokenizer's forward pass, without gradient."""

    image: Float[Tensor, "b c h w"]
    """Images (B, C, H, W) in [-1, 1]."""
    output: TokenizerOutput
    """Output of the model, before the step changes the weights."""


@final
class TokenizerObjective(Objective):
    """A tokenizer and its loss table: images in, total loss out."""

    def __init__(self, model: Tokenizer, losses: LossTable, runtime: Runtime):
        super().__init__()
        self.model, self.losses, self.runtime = model, losses, runtime

    def inputs(self, piece: Batch) -> tuple[Tensor, ...]:
        """The images."""
        return (self.runtime.place(piece.image),)

    def sources(self, piece: Batch) -> Sequence[str]:
        """The files."""
        return piece.keys

    def forward(
        self, image_BCHW: Float[Tensor, "b c h w"], gan_step: GANStep | None = None
    ) -> tuple[Float[Tensor, ""], Hidden]:
        """The total loss (), and as `Hidden` the loss terms and the model's output. 总损失，以及各损失项与模型输出。"""
        # Encode, quantize, decode; this may also update the codebook (moving average, revival)
        # 编码、量化、解码；码本也可能在此更新（滑动平均、复活死码）
        with self.runtime.autocast():
            output = self.model(image_BCHW)
        # All unweighted loss terms and their weighted sum (), in fp32 / 各损失项及其加权和
        loss = self.losses(image_BCHW, output)
        if gan_step is not None:  # from disc_start on, add the adversarial term
            loss = gan_step.generator_loss(loss, output.reconstruction)
        return loss.total, Hidden(loss, TokenizerPass(image_BCHW, _detached(output)))


@final
class PriorObjective(Objective):
    """A prior and its loss: tokens in, nats per token out. 先验模型及其损失：输入词元，输出每词元的奈特数。"""

    def __init__(self, model: Prior, runtime: Runtime):
        super().__init__()
        self.model, self.runtime = model, runtime

    def inputs(self, piece: TokenBatch) -> tuple[Tensor, ...]:
        """Tokens and labels, checked on the CPU before the copy to the device."""
        self.model.check(piece.tokens, piece.labels)
        return self.runtime.send(piece.tokens), self.runtime.send(piece.labels)

    def sources(self, piece: TokenBatch) -> Sequence[str]:
        """Empty: tokens have no files."""
        return ("tokens",) * len(piece)

    def forward(
        self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], Hidden]:
        """Mean negative log-likelihood in nats per token (), also as a named term."""
        with self.runtime.autocast():
            nats = self.model.loss(tokens_BL, labels_B)
        return nats, Hidden(LossResult(nats, {"nats": nats}, {"nats": 1.0}), None)


@torch.no_grad()
def validation_nats(prior: Prior, batches: Iterator[TokenBatch], runtime: Runtime) -> float:
    """Mean negative log-likelihood in nats per token over all batches, with the prior in eval mode."""
    total, images = 0.0, 0
    for batch in batches:
        with runtime.autocast():
            nats = prior.loss(batch.tokens.to(runtime.device), batch.labels.to(runtime.device))
        total, images = total + float(nats) * len(batch), images + len(batch)
    return total / images


def _detached(output: TokenizerOutput) -> TokenizerOutput:
    """The output detached from the autograd graph, which would hold memory."""
    inner = output.quantizer_output
    terms = {name: term.detach() for name, term in inner.terms.items()}
    quantized = QuantizerOutput(inner.quantized.detach(), inner.indices, terms, inner.weights)
    return TokenizerOutput(output.reconstruction.detach(), quantized)
