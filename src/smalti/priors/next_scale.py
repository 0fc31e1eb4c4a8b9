"""VAR: a transformer that predicts all tokens of a scale at once from the coarser scales.

Source: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction" (arXiv
2404.02905), and its published weights.

    scale 1      is predicted from the class only
    scale k + 1  is predicted from the class and from f_hat after scale k, resized to the grid of scale k + 1

`MultiScaleQuantizer.next_scale_input` computes this input, in training (`var_input`) and in sampling. So the prior
holds the frozen quantizer, the only part of the tokenizer that it needs. `next_token.py` predicts token by token,
`masked.py` any subset from the other tokens.

With several codes per position (residual levels, groups) the head predicts them independently from one vector; the
next scale gets their sum.

Legend: B images, L tokens, l_k of scale k, C dimensions of a code, W width, V vocabulary.
图例：B 张图像，L 个词元，第 k 个尺度 l_k 个，码字 C 维，宽度 W，词表 V。
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from smalti.blocks.transformer import check_sizes
from smalti.checks import below_one
from smalti.ops.linear import linear
from smalti.priors.adaptive_block import AdaptiveBlock, modulated
from smalti.priors.base import Prior, as_settings, bits_of, check_given, cross_entropy, kept
from smalti.priors.cache import KeyValueCache
from smalti.priors.layout import TokenLayout
from smalti.priors.sampling import SamplingConfig, check_drawn, draw, guided
from smalti.quantizers import MultiScaleQuantizer


@dataclass(frozen=True)
class NextScaleConfig:
    """Sizes of a next-scale transformer; VAR-d16 is the default."""

    depth: int = 16
    """Number of blocks."""
    width: int = 1024
    """Dimension of a token inside the transformer; VAR: 64 · depth."""
    num_heads: int = 16
    """Attention heads; VAR: as many as blocks."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLPs divided by `width`."""
    l2_attention: bool = True
    """Whether queries and keys have unit length, for stable training of large models."""
    shared_adaln: bool = False
    """Whether all blocks share one linear layer for conditioning (VAR's 512-pixel model)."""
    class_dropout: float = 0.1
    """Probability that training omits the class, as guidance requires."""
    drop_path: float = 0.0
    """Stochastic depth: probability of omitting a branch of the last block, rising linearly from 0 at the first block.
    VAR: depth / 240."""

    def __post_init__(self) -> None:
        check_sizes(self.width, self.num_heads, self.mlp_ratio, depth=self.depth)
        below_one(class_dropout=self.class_dropout, drop_path=self.drop_path)


@final
class NextScaleTransformer(Prior):
    """p(scale k + 1 | scales up to k, class), for tokens of a multi-scale tokenizer."""

    level_mask: Bool[Tensor, "l l"]
    """True where a token (row) may attend to another (column): at its own scale and coarser scales."""

    def __init__(
        self,
        layout: TokenLayout | Mapping[str, Any],
        num_classes: int,
        quantizer: MultiScaleQuantizer,
        config: Mapping[str, Any] | NextScaleConfig | None = None,
        *,
        class_names: Sequence[str] = (),
    ):
        """
        Args:
            layout: the tokens to model.
            num_classes: number of classes; 0 without labels.
            quantizer: quantizer of the tokenizer; frozen, and saved with the prior.
            config: sizes.
            class_names: names of the classes, if they have any.
        """
        super().__init__()
        layout = TokenLayout.from_config(layout)
        self.settings = config = as_settings(NextScaleConfig, config)
        if layout.vocab_size != quantizer.num_embeddings or len(layout.grids) != len(quantizer.patch_nums):
            raise ValueError(
                f"quantizer: got {quantizer.num_embeddings} codes and {len(quantizer.patch_nums)} scales, "
                f"expected {layout.vocab_size} and {len(layout.grids)} as in the layout"
            )
        if layout.grids[0][2:] != quantizer.code_shape:
            raise ValueError(
                f"quantizer: got codes of shape {quantizer.code_shape} per position, expected {layout.grids[0][2:]}"
            )
        self.layout, self.num_classes, self.class_dropout = layout, num_classes, config.class_dropout
        self.class_names = tuple(class_names)
        self.quantizer = quantizer
        quantizer.freeze()
        width = config.width
        self.class_embedding = nn.Embedding(num_classes + 1, width)
        self.start = nn.Parameter(torch.empty(layout.scale_positions[0], width))
        self.word_embedding = nn.Linear(quantizer.embedding_dim, width)
        self.positions = nn.Parameter(torch.empty(sum(layout.scale_positions), width))
        self.level_embedding = nn.Embedding(len(layout.grids), width)
        self.shared_modulation = nn.Linear(width, 6 * width) if config.shared_adaln else None
        self.blocks = nn.ModuleList(
            AdaptiveBlock(
                width,
                config.num_heads,
                mlp_ratio=config.mlp_ratio,
                l2_norm=config.l2_attention,
                shared=config.shared_adaln,
                drop_path=config.drop_path * i / max(1, config.depth - 1),
            )
            for i in range(config.depth)
        )
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, layout.codes_per_position * layout.vocab_size)
        for name, constant in self.constants().items():
            self.register_buffer(name, constant, persistent=False)
        self._initialise()

    def constants(self) -> dict[str, Tensor]:
        """See `Prior.constants`: the scale of each position, and the attention mask."""
        positions = self.layout.scale_positions
        level_L = torch.repeat_interleave(
            torch.arange(len(positions)), torch.tensor(positions), output_size=sum(positions)
        )
        return {"levels": level_L, "level_mask": level_L[:, None] >= level_L[None, :]}

    def config(self) -> dict[str, Any]:
        """See `SavedModel.config`."""
        return super().config() | {"quantizer": self.quantizer.config()}

    # ---- training -----------------------------------------------------------------------------------------------

    def forward(self, var_input_BlC: Float[Tensor, "b _ c"], labels_B: Int64[Tensor, " b"]) -> Float[Tensor, "b l v"]:
        """Logits (B, L, V) of all scales at once, by teacher forcing.

        Args:
            var_input_BlC: (B, L - l_1, C), `quantizer.var_input` of the true tokens.
            labels_B: classes, 0 to `num_classes`.
        """
        # 1. The first scale starts from the class, the others from f_hat / 首个尺度由类别开始，其余由 f_hat 开始
        condition_BW = self.class_embedding(labels_B)
        start_BlW = condition_BW.unsqueeze(1) + self.start
        x_BLW = torch.cat([start_BlW, self.word_embedding(var_input_BlC)], dim=1) + self._places()
        # 2. Every token attends to its own scale and coarser scales / 每个词元只看本尺度与更粗的尺度
        shared = self._shared(condition_BW)
        for block in self._layers():
            x_BLW = self._through(block, x_BLW, block.modulations(condition_BW, shared), self.level_mask)
        return self._logits(x_BLW, condition_BW)

    def loss(self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        """See `Prior.loss`; every token of every scale is predicted."""
        self.check(tokens_BL, labels_B)
        logits_BLV = self(self.quantizer.var_input(self.layout.split(tokens_BL)), self._dropped(labels_B))
        return cross_entropy(logits_BLV, tokens_BL)

    @torch.no_grad()
    def surprisal(self, tokens_BL: Int64[Tensor, "b l"], labels_B: Int64[Tensor, " b"]) -> Float[Tensor, "b l"]:
        """See `Prior.surprisal`."""
        self.check(tokens_BL, labels_B)
        return bits_of(self(self.quantizer.var_input(self.layout.split(tokens_BL)), labels_B), tokens_BL)

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
        """See `Prior.sample`: one pass per scale; guidance rises from 0 at the first scale to full strength."""
        check_given(given_BL, keep_BL)
        self.check(given_BL, labels_B)
        config = config or SamplingConfig()
        layout, grids = self.layout, tuple((grid[0], grid[1]) for grid in self.layout.grids)
        guidance = self._guidance(config)
        doubled_B = self._doubled(labels_B, guidance)
        condition_BW = self.class_embedding(doubled_B)
        shared = self._shared(condition_BW)
        modulations = [block.modulations(condition_BW, shared) for block in self._layers()]
        cache, places = self._cache(doubled_B.shape[0]), self._places().split(layout.scale_positions)
        x_BlW = condition_BW.unsqueeze(1) + self.start + places[0]
        f_hat_BCHW = torch.zeros(len(labels_B), self.quantizer.embedding_dim, *grids[-1], device=labels_B.device)
        tokens: list[Tensor] = []
        chances: list[Tensor] = []
        for k, (start, end) in enumerate(layout.spans):
            # 1. All tokens of this scale at once / 一次得到本尺度的全部词元
            for block, six, layer in zip(self.blocks, modulations, cache.layers, strict=True):
                x_BlW = block(x_BlW, six, None, layer)
            logits_BlV = self._logits(x_BlW, condition_BW)
            if guidance:
                logits_BlV = guided(logits_BlV, guidance * k / max(1, len(grids) - 1))
            drawn_Bl, p_Bl = draw(logits_BlV, config, generator)
            chances.append(p_Bl)
            tokens.append(kept(drawn_Bl, given_BL, keep_BL, slice(start, end)))
            if end == layout.num_tokens:
                break
            # 2. Add them to f_hat and resize it to the next scale / 累加到 f_hat，再缩放到下一尺度
            codes_BChw = self.quantizer.scale_codes(k, tokens[k].reshape(-1, *layout.grids[k]))
            f_hat_BCHW, seen_BChw = self.quantizer.next_scale_input(k, f_hat_BCHW, codes_BChw, grids)
            seen_BlC = seen_BChw.flatten(2).transpose(1, 2).to(self.word_embedding.weight.dtype)
            x_BlW = self.word_embedding(seen_BlC) + places[k + 1]
            x_BlW = x_BlW.repeat(2, 1, 1) if guidance else x_BlW
        check_drawn(torch.cat(chances, dim=1))
        return torch.cat(tokens, dim=1)

    # ---- parts --------------------------------------------------------------------------------------------------

    def _layers(self) -> list[AdaptiveBlock]:
        return [block for block in self.blocks if isinstance(block, AdaptiveBlock)]

    def _places(self) -> Tensor:
        """Embeddings of position and scale of each token, (L, W)."""
        return self.positions + self.level_embedding(self.levels)

    def _shared(self, condition_BW: Tensor) -> Tensor | None:
        if self.shared_modulation is None:
            return None
        return self.shared_modulation(F.silu(condition_BW)).unflatten(1, (6, -1))

    def _logits(self, x_BlW: Tensor, condition_BW: Tensor) -> Tensor:
        scale_BW, shift_BW = self.head_modulation(F.silu(condition_BW)).chunk(2, dim=1)
        x_BlW = modulated(x_BlW, scale_BW.unsqueeze(1), shift_BW.unsqueeze(1))
        logits = linear(x_BlW, self.head.weight, self.head.bias)
        return logits.unflatten(2, (self.layout.codes_per_position, -1)).flatten(1, 2)

    def _cache(self, batch: int) -> KeyValueCache:
        heads, weight = self.settings.num_heads, self.word_embedding.weight
        shape = (batch, heads, len(self.positions), self.settings.width // heads)
        return KeyValueCache(self.settings.depth, shape, dtype=weight.dtype, device=weight.device)

    def _initialise(self) -> None:
        """VAR's initial weights: smaller branches in deeper models, and blocks close to the identity."""
        config = self.settings
        std = (1 / config.width / 3) ** 0.5
        frozen = set(self.quantizer.modules())
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding) and module not in frozen:
                nn.init.trunc_normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        for parameter in (self.start, self.positions):
            nn.init.trunc_normal_(parameter, std=std)
        with torch.no_grad():
            self.head.weight.mul_(0.02)
            self.head_modulation.weight.mul_(0.5)
            for block in self._layers():
                block.write_less((2 * config.depth) ** 0.5)
