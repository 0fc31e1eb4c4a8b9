"""The interface of all priors: models of the token sequences of one tokenizer, conditioned on a class.

    loss = prior.loss(tokens, labels)          # nats per token, differentiable
    tokens = prior.sample(labels, settings)    # (B, L), for the decoder of the tokenizer

Legend: B images, L tokens per image, V vocabulary.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smalti.formats.arguments import construct
from smalti.models import SavedModel
from smalti.ops.waiting import worth_a_wait
from smalti.priors.layout import TokenLayout
from smalti.priors.sampling import SamplingConfig
from smalti.quantizers import Quantizer, with_quantizer

Model = TypeVar("Model", bound="Prior")
Settings = TypeVar("Settings")


class Prior(SavedModel):
    """A model p(tokens | class), trained on tokens and sampled from.

    Class labels lie in [0, num_classes). The label `num_classes` means "no class": guidance needs it, and training
    replaces random labels by it (`class_dropout`).
    """

    hub_tag = "image-prior"
    loader = "load_prior"

    settings: Any
    """Sizes of the network, a frozen dataclass."""
    layout: TokenLayout
    """The tokens that this prior models."""
    num_classes: int
    """Number of classes; 0 if the data has no labels."""
    class_names: tuple[str, ...] = ()
    """Names of the classes; may be empty."""
    class_dropout: float
    """Probability that training replaces the class by "no class"."""
    predicted: str = "token"
    """What the loss is a mean over; "token": the loss is a code length of the image."""
    gradient_checkpointing: bool = False
    """Whether training uses activation checkpointing: blocks are computed again in the backward pass."""

    @classmethod
    def from_config(cls: type[Model], config: Mapping[str, Any]) -> Model:
        """See `SavedModel.from_config`."""
        return super().from_config(with_quantizer(config))

    @abstractmethod
    def loss(self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        """Mean negative log-likelihood in nats per token, over the tokens that this kind of prior predicts.

        Args:
            tokens_BL: flat sequences, coarse to fine, raster order.
            labels_B: classes, 0 to `num_classes` (no class).
        """

    @abstractmethod
    def surprisal(self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]) -> Float[Tensor, "b l"]:
        """Surprisal of each token in bits: -log2 of the probability that the prior gives it.

        A next-token prior predicts a token from those before it, a next-scale prior from the coarser scales: the sum
        over an image is its negative log-likelihood. A masked prior predicts each half of the tokens from the other
        half.

        Args:
            tokens_BL: flat sequences, coarse to fine, raster order.
            labels_B: classes, 0 to `num_classes` (no class).
        """

    @abstractmethod
    def sample(
        self,
        labels_B: Int64[Tensor, " b"],
        config: SamplingConfig | None = None,
        *,
        given_BL: Int64[Tensor, "b l"] | None = None,
        keep_BL: Bool[Tensor, "b l"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Int64[Tensor, "b l"]:
        """Sample token sequences (B, L).

        Args:
            labels_B: class of each image, 0 to `num_classes` (no class).
            config: sampling settings.
            given_BL: tokens of other images, for continuation and editing; requires `keep_BL`.
            keep_BL: True where a given token is kept; the other tokens are sampled.
            generator: source of randomness, on the device of the model.
        """

    def config(self) -> dict[str, Any]:
        """See `SavedModel.config`; dropout settings only if not 0, to keep the fingerprints of older models."""
        unused = {name for name in ("dropout", "drop_path") if not getattr(self.settings, name, 0)}
        return {
            "layout": self.layout.config(),
            "num_classes": self.num_classes,
            "config": {name: value for name, value in asdict(self.settings).items() if name not in unused},
            "class_names": list(self.class_names),
        }

    @torch.no_grad()
    def cast(self, dtype: torch.dtype) -> None:
        """Cast the weights to another number format, in place, for sampling.

        Unlike autocast this converts nothing per call, and the cache is smaller too. The quantizer and tables of
        positions keep their format, and tokens are sampled in fp32 or better.
        """
        for child in self.children():
            if not isinstance(child, Quantizer):
                child.to(dtype)
        for parameter in self.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)

    def constants(self) -> dict[str, Tensor]:
        """Buffers computed from layout and settings, by name; they are not saved."""
        return {}

    def _apply(self, fn: Any, recurse: bool = True) -> "Prior":
        """Compute the constants again: `to_empty`, after building on the meta device, leaves them uninitialised."""
        super()._apply(fn, recurse)
        for name, constant in self.constants().items():
            setattr(self, name, constant.to(getattr(self, name)))
        return self

    def check(self, tokens_BL: Int64[Tensor, "b l"] | None, labels_B: Int64[Tensor, " b"]) -> None:
        """Refuse sequences of another layout and invalid labels.

        In training on a GPU only shapes are checked: the training loop calls this with tokens that are on the CPU.

        Raises:
            ValueError: names the invalid argument.
        """
        if tokens_BL is not None and tuple(tokens_BL.shape) != (labels_B.shape[0], self.layout.num_tokens):
            expected = (labels_B.shape[0], self.layout.num_tokens)
            raise ValueError(f"tokens: got shape {tuple(tokens_BL.shape)}, expected {expected}")
        if not worth_a_wait(labels_B):
            return
        bad = _outside(labels_B, self.num_classes)
        if bad is not None:
            raise ValueError(f"labels: got {bad}, expected 0 to {self.num_classes} ({self.num_classes}: no class)")
        bad = _outside(tokens_BL, self.layout.vocab_size - 1)
        if bad is not None:
            raise ValueError(f"tokens: got the value {bad}, expected 0 to {self.layout.vocab_size - 1}")

    def _dropped(self, labels_B: Tensor) -> Tensor:
        """Labels; training replaces a random part by "no class"."""
        if not self.training or self.class_dropout == 0:
            return labels_B
        hidden = torch.rand(labels_B.shape, device=labels_B.device) < self.class_dropout
        return labels_B.masked_fill(hidden, self.num_classes)

    def _guidance(self, config: SamplingConfig) -> float:
        """Strength of guidance; 0 without classes, as both predictions would be equal at twice the cost."""
        return config.guidance if self.num_classes else 0.0

    def _doubled(self, labels_B: Tensor, guidance: float) -> Tensor:
        """With guidance, the batch followed by the same batch without classes: (2B,)."""
        return torch.cat([labels_B, torch.full_like(labels_B, self.num_classes)]) if guidance else labels_B

    def _through(self, block: nn.Module, *inputs: Any) -> Tensor:
        """Apply a block, with activation checkpointing if set."""
        if self.training and self.gradient_checkpointing:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def _outside(values: Tensor | None, largest: int) -> int | None:
    """A value below 0 or above `largest`; None if there is none."""
    if values is None or values.numel() == 0:
        return None
    low, high = (int(value) for value in values.aminmax())
    return low if low < 0 else high if high > largest else None


IGNORED = -100
"""Target of a token that the loss ignores."""


def cross_entropy(
    logits_BLV: Float[Tensor, "b l v"], tokens_BL: Int64[Tensor, "b l"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood in nats per token, in fp32, over all tokens that are not `IGNORED`."""
    logits_NV, tokens_N = logits_BLV.flatten(0, 1).float(), tokens_BL.flatten()
    return F.cross_entropy(logits_NV, tokens_N, ignore_index=IGNORED, label_smoothing=label_smoothing)


def bits_of(logits_BLV: Float[Tensor, "b l v"], tokens_BL: Int64[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """Negative log-likelihood of each token in bits, in fp32."""
    nats_N = F.cross_entropy(logits_BLV.flatten(0, 1).float(), tokens_BL.flatten(), reduction="none")
    return nats_N.view_as(tokens_BL) / math.log(2)


def check_given(given_BL: Tensor | None, keep_BL: Tensor | None) -> None:
    """Refuse one argument without the other."""
    if (given_BL is None) != (keep_BL is None):
        alone, missing = ("given_BL", "keep_BL") if keep_BL is None else ("keep_BL", "given_BL")
        raise ValueError(f"{missing}: got None, expected it together with {alone}")


def kept(drawn: Tensor, given_BL: Tensor | None, keep_BL: Tensor | None, span: slice) -> Tensor:
    """Sampled tokens (B, n) of the positions `span`, with kept tokens in their place."""
    if given_BL is None or keep_BL is None:
        return drawn
    return torch.where(keep_BL[:, span], given_BL[:, span], drawn)


def as_settings(kind: type[Settings], config: Mapping[str, Any] | Settings | None) -> Settings:
    """The sizes as a dataclass; a dictionary from config.json is converted."""
    return config if isinstance(config, kind) else construct(kind, config or {})
