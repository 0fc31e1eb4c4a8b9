"""LlamaGen: a language model of tokens in raster order; each is predicted from the class and all tokens before it.

Source: Sun et al. 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (arXiv 2406.06525),
and its published weights. It works with any single-scale tokenizer. With Q codes per position (residual levels,
groups), the codes follow each other, and an embedding marks which of the Q comes next.

`next_scale.py` needs one pass per scale instead of one per token, and a multi-scale tokenizer.

Legend: B images, L tokens, W width, V vocabulary; the class is token number 0 of the input sequence.
图例：B 张图像，L 个词元，宽度 W，词表 V；类别是输入序列的第 0 个词元。
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from smalti.blocks.transformer import check_sizes
from smalti.checks import above_zero, at_least, below_one
from smalti.priors.base import Prior, as_settings, bits_of, check_given, cross_entropy, kept
from smalti.priors.cache import KeyValueCache
from smalti.priors.layout import TokenLayout
from smalti.priors.llama_block import LlamaBlock
from smalti.priors.packed import packed
from smalti.priors.rotary import rotary_table
from smalti.priors.sampling import SamplingConfig, check_drawn, draw, guided


@dataclass(frozen=True)
class NextTokenConfig:
    """Sizes of a next-token transformer; LlamaGen-B is the default."""

    depth: int = 12
    """Number of blocks."""
    width: int = 768
    """Dimension of a token inside the transformer."""
    num_heads: int = 12
    """Attention heads of queries."""
    num_kv_heads: int = 0
    """Attention heads of keys and values; 0: as many as of queries."""
    hidden: int = 0
    """Hidden width of the MLPs; 0: 8/3 of `width`, rounded up to a multiple of 256."""
    rope_base: float = 10000.0
    """Slowest rotary frequency, see `rotary_table`."""
    class_dropout: float = 0.1
    """Probability that training omits the class, as guidance requires."""
    dropout: float = 0.0
    """Dropout of embeddings and block outputs; LlamaGen: 0.1."""

    def __post_init__(self) -> None:
        heads = self.num_kv_heads or self.num_heads
        check_sizes(self.width, self.num_heads, depth=self.depth)
        at_least(0, hidden=self.hidden)
        above_zero(rope_base=self.rope_base)
        if heads < 1 or self.num_heads % heads:
            raise ValueError(f"num_kv_heads: got {heads}, expected a divisor of {self.num_heads}")
        below_one(class_dropout=self.class_dropout, dropout=self.dropout)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLPs."""
        return self.hidden or -(-(8 * self.width // 3) // 256) * 256


@final
class NextTokenTransformer(Prior):
    """p(token | tokens before it, class), for tokens of a single-scale tokenizer."""

    rotary: Float[Tensor, "l half 2"]
    """Cosine and sine of the class token and all others."""

    def __init__(
        self,
        layout: TokenLayout | Mapping[str, Any],
        num_classes: int,
        config: Mapping[str, Any] | NextTokenConfig | None = None,
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
        self.settings = config = as_settings(NextTokenConfig, config)
        if len(layout.grids) != 1:
            raise ValueError(f"layout: got {len(layout.grids)} scales, expected a single one for a next-token prior")
        self.layout, self.num_classes, self.class_dropout = layout, num_classes, config.class_dropout
        self.class_names = tuple(class_names)
        codes, heads = layout.codes_per_position, config.num_heads
        self.class_embedding = nn.Embedding(num_classes + 1, config.width)
        self.word_embedding = nn.Embedding(layout.vocab_size, config.width)
        self.code_embedding = nn.Parameter(torch.zeros(codes, config.width)) if codes > 1 else None
        self.blocks = nn.ModuleList(
            LlamaBlock(config.width, heads, config.num_kv_heads or heads, config.mlp_width, config.dropout)
            for _ in range(config.depth)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.head = nn.Linear(config.width, layout.vocab_size, bias=False)
        self.register_buffer("rotary", self.constants()["rotary"], persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.weight)

    def constants(self) -> dict[str, Tensor]:
        """See `Prior.constants`: the rotary angles of all positions."""
        height, width = self.layout.grids[0][:2]
        head_dim, codes = self.settings.width // self.settings.num_heads, self.layout.codes_per_position
        return {"rotary": rotary_table((height, width), head_dim, codes=codes, base=self.settings.rope_base)}

    # ---- training -----------------------------------------------------------------------------------------------

    def forward(self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]) -> Float[Tensor, "b l v"]:
        """Logits (B, L, V) of every token from those before it.

        Args:
            tokens_BL: the true tokens (B, L).
            labels_B: classes, 0 to `num_classes`.
        """
        # The class, then all tokens but the last: position i predicts token i / 类别之后接除最后一个外的全部词元
        words_BLW = self.word_embedding(tokens_BL[:, :-1])
        x_BLW = torch.cat([self.class_embedding(labels_B).unsqueeze(1), words_BLW], dim=1)
        return self._read(x_BLW, 0, None)

    def loss(self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        """See `Prior.loss`; every token is predicted."""
        self.check(tokens_BL, labels_B)
        return cross_entropy(self(tokens_BL, self._dropped(labels_B)), tokens_BL)

    @torch.no_grad()
    def surprisal(self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]) -> Float[Tensor, "b l"]:
        """See `Prior.surprisal`."""
        self.check(tokens_BL, labels_B)
        return bits_of(self(tokens_BL, labels_B), tokens_BL)

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
        """See `Prior.sample`: one pass per token; kept tokens are processed like sampled ones."""
        check_given(given_BL, keep_BL)
        self.check(given_BL, labels_B)
        config = config or SamplingConfig()
        guidance = self._guidance(config)
        doubled_B = self._doubled(labels_B, guidance)
        cache, reader = self._cache(doubled_B.shape[0]), packed(self, rows=doubled_B.shape[0])
        tokens_BL = torch.empty(labels_B.shape[0], self.layout.num_tokens, dtype=torch.int64, device=labels_B.device)
        chances: list[Tensor] = []
        x_B1W = self.class_embedding(doubled_B).unsqueeze(1)
        for i in range(self.layout.num_tokens):
            logits_B1V = reader._read(x_B1W, i, cache)
            if guidance:
                logits_B1V = guided(logits_B1V, guidance)
            drawn_B1, p_B1 = draw(logits_B1V, config, generator)
            chances.append(p_B1)
            tokens_BL[:, i : i + 1] = kept(drawn_B1, given_BL, keep_BL, slice(i, i + 1))
            x_B1W = self.word_embedding(tokens_BL[:, i : i + 1])
            x_B1W = x_B1W.repeat(2, 1, 1) if guidance else x_B1W
        check_drawn(torch.cat(chances, dim=1))
        return tokens_BL

    # ---- parts --------------------------------------------------------------------------------------------------

    def _read(self, x_BnW: Tensor, start: int, cache: KeyValueCache | None) -> Tensor:
        """Logits after each of n inputs at positions `start`, `start` + 1, …"""
        end = start + x_BnW.shape[1]
        if self.code_embedding is not None:
            x_BnW = (
                x_BnW + self.code_embedding[torch.arange(start, end, device=x_BnW.device) % len(self.code_embedding)]
            )
        x_BnW, rotary = self.dropout(x_BnW), self.rotary[start:end]
        for i, block in enumerate(self.blocks):
            x_BnW = self._through(block, x_BnW, rotary, cache.layers[i] if cache else None)
        return self.head(self.norm(x_BnW))

    def _cache(self, batch: int) -> KeyValueCache:
        config, weight = self.settings, self.word_embedding.weight
        heads = config.num_kv_heads or config.num_heads
        shape = (batch, heads, self.layout.num_tokens, config.width // config.num_heads)
        return KeyValueCache(config.depth, shape, dtype=weight.dtype, device=weight.device)
