"""What every prior is: a model of the token sequences of one tokenizer, conditioned on a class.

    loss = prior.loss(tokens, labels)          # nats a token, differentiable
    tokens = prior.sample(labels, settings)    # (B, L), to be decoded by the tokenizer

Legend: B images, L tokens an image, V vocabulary.
"""

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
from smalti.formats.saved_model import SavedModel
from smalti.ops.waiting import worth_a_wait
from smalti.priors.layout import TokenLayout
from smalti.priors.sampling import SamplingConfig
from smalti.quantizers import Quantizer, with_quantizer

Model = TypeVar("Model", bound="Prior")
Settings = TypeVar("Settings")


class Prior(SavedModel):
    """A model p(tokens | class), trained on tokens and sampled from.

    Class labels lie in [0, num_classes); `num_classes` itself stands for "no class", which guidance needs and which
    training puts in place of a label now and then (`class_dropout`).
    """

    hub_tag = "image-prior"
    loader = "load_prior"

    settings: Any
    """Sizes of the network, a frozen dataclass."""
    layout: TokenLayout
    """The tokens that this prior models."""
    num_classes: int
    """Number of classes; 0 where the data has no labels."""
    class_names: tuple[str, ...] = ()
    """Names of the classes; empty where they have none."""
    class_dropout: float
    """Probability that training hides the class."""
    gradient_checkpointing: bool = False
    """Whether training computes the blocks a second time in the backward pass instead of keeping what they made."""

    @classmethod
    def from_config(cls: type[Model], config: Mapping[str, Any]) -> Model:
        """See `SavedModel.from_config`."""
        return super().from_config(with_quantizer(config))

    @abstractmethod
    def loss(self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        """Mean negative log-likelihood in nats a token (of the tokens that this kind of prior is asked to predict).

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
        """Draw token sequences (B, L).

        Args:
            labels_B: class of each image, 0 to `num_classes` (no class).
            config: how to draw.
            given_BL: tokens of other images, for continuing and editing.
            keep_BL: which of them to keep; the others are drawn. Either both or none.
            generator: source of randomness, on the device of the model.
        """

    def config(self) -> dict[str, Any]:
        """See `SavedModel.config`; shares that training drops only where there are some: older fingerprints stay."""
        unused = {name for name in ("dropout", "drop_path") if not getattr(self.settings, name, 0)}
        return {
            "layout": self.layout.config(),
            "num_classes": self.num_classes,
            "config": {name: value for name, value in asdict(self.settings).items() if name not in unused},
            "class_names": list(self.class_names),
        }

    @torch.no_grad()
    def cast(self, dtype: torch.dtype) -> None:
        """Turn the weights into another number format, in place, for sampling.

        Then nothing is converted at every call, as autocast does, and the cache shrinks too. The quantizer, which adds
        up codes, and tables of positions keep their format, and tokens are drawn in fp32 or better.
        """
        for child in self.children():
            if not isinstance(child, Quantizer):
                child.to(dtype)
        for parameter in self.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)

    def constants(self) -> dict[str, Tensor]:
        """Buffers that follow from layout and settings, by name; they are not saved."""
        return {}

    def _apply(self, fn: Any, recurse: bool = True) -> "Prior":
        """Make the constants anew: `to_empty`, after building on the meta device, leaves them as the memory was."""
        super()._apply(fn, recurse)
        for name, constant in self.constants().items():
            setattr(self, name, constant.to(getattr(self, name)))
        return self

    def check(self, tokens_BL: Int64[Tensor, "b l"] | None, labels_B: Int64[Tensor, " b"]) -> None:
        """Refuse sequences of another layout and labels that are no class.

        In training on a GPU only shapes are looked at: its loop calls this with tokens that still are on the CPU.

        Raises:
            ValueError: names what is wrong.
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
        """Labels of which training has hidden some."""
        if not self.training or self.class_dropout == 0:
            return labels_B
        hidden = torch.rand(labels_B.shape, device=labels_B.device) < self.class_dropout
        return labels_B.masked_fill(hidden, self.num_classes)

    def _guidance(self, config: SamplingConfig) -> float:
        """Strength of guidance; 0 without classes, where both predictions are one and would cost twice."""
        return config.guidance if self.num_classes else 0.0

    def _doubled(self, labels_B: Tensor, guidance: float) -> Tensor:
        """With guidance, the batch a second time without classes: (2B,)."""
        return torch.cat([labels_B, torch.full_like(labels_B, self.num_classes)]) if guidance else labels_B

    def _through(self, block: nn.Module, *inputs: Any) -> Tensor:
        """A block, recomputed in the backward pass where that was asked for."""
        if self.training and self.gradient_checkpointing:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def _outside(values: Tensor | None, largest: int) -> int | None:
    """A value below 0 or above `largest`, if there is one."""
    if values is None or values.numel() == 0:
        return None
    low, high = (int(value) for value in values.aminmax())
    return low if low < 0 else high if high > largest else None


IGNORED = -100
"""In place of a token that the loss leaves out."""


def cross_entropy(
    logits_BLV: Float[Tensor, "b l v"], tokens_BL: Int64[Tensor, "b l"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood in nats a token, in fp32, of all tokens that are not `IGNORED`."""
    logits_NV, tokens_N = logits_BLV.flatten(0, 1).float(), tokens_BL.flatten()
    return F.cross_entropy(logits_NV, tokens_N, ignore_index=IGNORED, label_smoothing=label_smoothing)


def check_given(given_BL: Tensor | None, keep_BL: Tensor | None) -> None:
    """Refuse one without the other: neither says anything alone."""
    if (given_BL is None) != (keep_BL is None):
        alone, missing = ("given_BL", "keep_BL") if keep_BL is None else ("keep_BL", "given_BL")
        raise ValueError(f"{missing}: got None, expected it together with {alone}")


def check_shares(**shares: float) -> None:
    """Refuse shares that leave nothing to learn from, by their names."""
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}: got {share}, expected at least 0 and below 1")


def kept(drawn: Tensor, given_BL: Tensor | None, keep_BL: Tensor | None, span: slice) -> Tensor:
    """Drawn tokens (B, n) of the positions `span`, with the given ones in place where they are to be kept."""
    if given_BL is None or keep_BL is None:
        return drawn
    return torch.where(keep_BL[:, span], given_BL[:, span], drawn)


def as_settings(kind: type[Settings], config: Mapping[str, Any] | Settings | None) -> Settings:
    """Sizes as their dataclass, from the plain dictionary of a config.json where they come as one."""
    return config if isinstance(config, kind) else construct(kind, config or {})
