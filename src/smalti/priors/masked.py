"""MaskGIT: a transformer that predicts masked tokens; sampling accepts the most confident tokens first.

Source: Chang et al. 2022, "MaskGIT: Masked Generative Image Transformer" (arXiv 2202.04200): the cosine schedule of
section 3.2, the confidence sampling of section 3.1 with noise on the confidence that falls over the steps.

All tokens attend to all others, so a few passes sample a whole image, in no fixed order. `next_token.py` needs one
pass per token, `next_scale.py` a multi-scale tokenizer.

Legend: B images, L tokens, W width, V vocabulary.
图例：B 张图像，L 个词元，宽度 W，词表 V。
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from smalti.blocks.transformer import TransformerBlock, ViTConfig, check_sizes
from smalti.checks import at_least, below_one
from smalti.priors.base import IGNORED, Prior, as_settings, bits_of, check_given, cross_entropy
from smalti.priors.layout import TokenLayout
from smalti.priors.sampling import SamplingConfig, check_drawn, draw, guided


@dataclass(frozen=True)
class MaskedConfig:
    """Sizes of a masked transformer, and how it samples."""

    depth: int = 12
    """Number of blocks."""
    width: int = 768
    """Dimension of a token inside the transformer."""
    num_heads: int = 12
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLPs divided by `width`."""
    class_dropout: float = 0.1
    """Probability that training omits the class, as guidance requires."""
    dropout: float = 0.0
    """Dropout of embeddings and block outputs; MaskGIT: 0.1."""
    label_smoothing: float = 0.1
    """Label smoothing: fraction of the target spread evenly over the vocabulary, as in the paper."""
    sampling_steps: int = 12
    """Number of sampling passes per image."""
    choice_noise: float = 4.5
    """Strength of the Gumbel noise on the confidence at the first pass; it falls linearly to 0."""

    def __post_init__(self) -> None:
        at_least(1, sampling_steps=self.sampling_steps)
        below_one(class_dropout=self.class_dropout, dropout=self.dropout)
        check_sizes(self.width, self.num_heads, self.mlp_ratio, depth=self.depth)


@final
class MaskedTransformer(Prior):
    """p(hidden tokens | visible tokens, class), for tokens of a single-scale tokenizer."""

    predicted = "masked token"

    def __init__(
        self,
        layout: TokenLayout | Mapping[str, Any],
        num_classes: int,
        config: Mapping[str, Any] | MaskedConfig | None = None,
        *,
        class_names: Sequence[str] = (),
    ):
        """
        Args:
            layout: the tokens to model; a single scale.
            num_classes: number of classes; 0 without labels.
            config: sizes.
            class_names: names of the classes, if they have any.
        """
        super().__init__()
        layout = TokenLayout.from_config(layout)
        self.settings = config = as_settings(MaskedConfig, config)
        if len(layout.grids) != 1:
            raise ValueError(f"layout: got {len(layout.grids)} scales, expected a single one for a masked prior")
        self.layout, self.num_classes, self.class_dropout = layout, num_classes, config.class_dropout
        self.class_names = tuple(class_names)
        width = config.width
        self.class_embedding = nn.Embedding(num_classes + 1, width)
        self.word_embedding = nn.Embedding(layout.vocab_size + 1, width)  # the last row: mask / 最后一行：掩码
        self.positions = nn.Parameter(torch.empty(1 + layout.num_tokens, width))
        sizes = ViTConfig(width, config.depth, config.num_heads, mlp_ratio=config.mlp_ratio)
        self.blocks = nn.ModuleList(TransformerBlock(sizes, config.dropout) for _ in range(config.depth))
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, layout.vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    @property
    def hidden(self) -> int:
        """The mask token."""
        return self.layout.vocab_size

    # ---- training -----------------------------------------------------------------------------------------------

    def forward(self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]) -> Float[Tensor, "b l v"]:
        """Logits (B, L, V) of every position, from tokens (B, L), some of them `hidden`."""
        x_BLW = torch.cat([self.class_embedding(labels_B).unsqueeze(1), self.word_embedding(tokens_BL)], dim=1)
        x_BLW = self.dropout(x_BLW + self.positions)
        for block in self.blocks:
            x_BLW = self._through(block, x_BLW)
        return self.head(self.norm(x_BLW[:, 1:]))

    def loss(self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        """See `Prior.loss`; it predicts masked tokens, a random fraction of each image, at least one.

        In eval mode half of the tokens of each image is masked, the same ones in every call, so that validation losses
        are comparable; without label smoothing.
        """
        self.check(tokens_BL, labels_B)
        hidden_BL = self._hide(tokens_BL)
        seen_BL = tokens_BL.masked_fill(hidden_BL, self.hidden)
        logits_BLV = self(seen_BL, self._dropped(labels_B))
        smoothing = self.settings.label_smoothing if self.training else 0.0
        return cross_entropy(logits_BLV, tokens_BL.masked_fill(~hidden_BL, IGNORED), smoothing)

    @torch.no_grad()
    def surprisal(self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]) -> Float[Tensor, "b l"]:
        """See `Prior.surprisal`; in two passes, each with one half of the tokens masked."""
        self.check(tokens_BL, labels_B)
        half_BL = self._validation_half(tokens_BL)
        first_BL, second_BL = (
            bits_of(self(tokens_BL.masked_fill(hidden_BL, self.hidden), labels_B), tokens_BL)
            for hidden_BL in (half_BL, ~half_BL)
        )
        return torch.where(half_BL, first_BL, second_BL)

    def _hide(self, tokens_BL: Tensor) -> Tensor:
        """Random mask for training: of each image the fraction cos(π/2 · u), u uniform."""
        if not self.training:
            return self._validation_half(tokens_BL)
        batch, length = tokens_BL.shape
        share_B = torch.cos(torch.rand(batch, device=tokens_BL.device) * math.pi / 2)
        order_BL = torch.rand(batch, length, device=tokens_BL.device).argsort(dim=1)
        count_B = (share_B * length).ceil().clamp(min=1)
        return order_BL.argsort(dim=1) < count_B.unsqueeze(1)

    def _validation_half(self, tokens_BL: Tensor) -> Tensor:
        """Mask of the half of the tokens that validation hides, the same for all images."""
        batch, length = tokens_BL.shape
        order_L = torch.randperm(length, generator=torch.Generator().manual_seed(0)).to(tokens_BL.device)
        return (order_L.argsort() < math.ceil(length / 2)).expand(batch, -1)

    # ---- sampling -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        labels_B: Int64[Tensor, " b"],
        config: SamplingConfig | None = None,
        *,
        given_BL: Int64[Tensor, "b l"] | None = None,
        keep_BL: Bool[Tensor, "b l"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Int64[Tensor, "b l"]:
        """See `Prior.sample`: each pass samples all masked tokens and masks the least confident ones again."""
        check_given(given_BL, keep_BL)
        self.check(given_BL, labels_B)
        config, steps = config or SamplingConfig(), self.settings.sampling_steps
        guidance = self._guidance(config)
        doubled_B = self._doubled(labels_B, guidance)
        shape = (labels_B.shape[0], self.layout.num_tokens)
        tokens_BL = torch.full(shape, self.hidden, device=labels_B.device)
        if given_BL is not None and keep_BL is not None:
            tokens_BL = torch.where(keep_BL, given_BL, tokens_BL)
        to_draw_B = (tokens_BL == self.hidden).sum(dim=1)
        chances: list[Tensor] = []
        for step in range(1, steps + 1):
            hidden_BL = tokens_BL == self.hidden
            logits_BLV = self(tokens_BL.repeat(2, 1) if guidance else tokens_BL, doubled_B)
            if guidance:
                logits_BLV = guided(logits_BLV, guidance)
            drawn_BL, p_BL = draw(logits_BLV, config, generator)
            chances.append(p_BL)
            tokens_BL = torch.where(hidden_BL, drawn_BL, tokens_BL)
            # Keep visible tokens; mask the least confident new ones again / 可见的保留，最不确定的重新遮住
            noise_BL = _gumbel(p_BL, generator) * self.settings.choice_noise * (1 - step / steps)
            confidence_BL = torch.where(hidden_BL, p_BL.clamp(min=1e-30).log() + noise_BL, torch.inf)
            again_B = (to_draw_B * math.cos(math.pi / 2 * step / steps)).floor() if step < steps else 0 * to_draw_B
            rank_BL = confidence_BL.argsort(dim=1).argsort(dim=1)
            tokens_BL = tokens_BL.masked_fill((rank_BL < again_B.unsqueeze(1)) & hidden_BL, self.hidden)
        check_drawn(torch.cat(chances, dim=1))
        return tokens_BL


def _gumbel(like: Tensor, generator: torch.Generator | None) -> Tensor:
    uniform = torch.rand(like.shape, generator=generator, device=like.device).clamp(min=1e-20)
    return -(-uniform.log()).clamp(min=1e-20).log()
