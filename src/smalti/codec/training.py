"""Training of a context model in floats, and its rounding to integers.

The network is that of `context_model.py`, with the same names. It predicts randomly drawn tokens from their neighbours.
The frequency of each code per layer is counted, not learned. Embeddings are initialized with the principal components
of the tokenizer's codes, so similar codes start with similar embeddings: a token set has too few tokens to learn about
each pair of codes separately.

Legend: as in `context_model.py`; L tokens of an image, B images, K codes, D dimensions of a code.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from smalti.checks import between, expect
from smalti.codec.context_model import ACTIVATION_BITS, EMBEDDING_BITS, WEIGHT_BITS, ContextModel
from smalti.codec.groups import balanced_groups
from smalti.codec.neighbourhood import layers_of, neighbours, num_layers, num_neighbours
from smalti.codec.powers import FINENESS
from smalti.formats.token_codec import Grids

MIN_VOCABULARY, MAX_VOCABULARY = 4, 2**16
"""Limits of the vocabulary size: fewer codes form no groups, and frequencies of more codes cannot be estimated."""
LARGEST_COMPONENT = 127 / 2**EMBEDDING_BITS
"""Largest component of an embedding, so that it fits into eight bits."""


@dataclass(frozen=True)
class CodecTrainingConfig:
    """Settings for training a context model."""

    steps: int = 1500
    """Optimization steps."""
    batch_size: int = 2048
    """Tokens per step."""
    lr: float = 3e-3
    """Learning rate after the warm-up; it follows a cosine schedule to 1 % of this value."""
    embedding_dim: int = 16
    """Dimension of the embeddings."""
    hidden_dim: int = 96
    """Width of the two hidden layers."""
    seed: int = 0
    """Random seed of initial weights and drawn tokens."""

    def __post_init__(self) -> None:
        between(1, 2**20, steps=self.steps, batch_size=self.batch_size)
        between(1, 2**20, embedding_dim=self.embedding_dim, hidden_dim=self.hidden_dim)
        expect(0 < self.lr < 1, "lr", self.lr, "more than 0 and below 1")
        expect(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2 ** 63 - 1")


@dataclass(frozen=True, eq=False)
class _Images:
    """All images of the same grids."""

    ranks_BL: Tensor
    """Ranks; the last entry of each row is for positions outside the image."""
    context_LC: Tensor
    """Places of each token's neighbours."""
    layer_L: Tensor
    """The layer of each token."""


class _Network(nn.Module):
    """`ContextModel` in floats; logits are in bits."""

    member_bias: Tensor

    def __init__(self, members_GM: Tensor, codes_KD: Tensor, frequency_SR: Tensor, config: CodecTrainingConfig):
        super().__init__()
        G, M = members_GM.shape
        S, H, E, C = len(frequency_SR), config.hidden_dim, config.embedding_dim, num_neighbours(len(frequency_SR))
        start_RE = _principal_components(codes_KD, E)[members_GM.flatten()] * (members_GM.flatten() >= 0)[:, None]
        self.embedding = nn.Parameter(torch.cat([start_RE, torch.zeros(1, E)]))
        self.member = nn.Parameter(start_RE.clone())
        self.first = nn.Parameter(torch.randn(C * E, H) / (C * E) ** 0.5)
        self.first_bias = nn.Parameter(torch.zeros(S, H))
        self.second = nn.Parameter(torch.randn(H, H) / H**0.5)
        self.second_bias = nn.Parameter(torch.zeros(H))
        self.group = nn.Parameter(torch.randn(H, G) * 0.2 / H**0.5)
        self.query = nn.Parameter(torch.randn(H, E) * 0.2 / H**0.5)
        self.repeat = nn.Parameter(torch.zeros(H, 2 * C))
        self.repeat_bias = nn.Parameter(torch.zeros(2 * C))
        group_SG = frequency_SR.view(S, G, M).sum(2)
        self.group_bias = nn.Parameter(group_SG.log2().float())
        member_bias_SR = (frequency_SR.view(S, G, M) / group_SG[:, :, None]).log2().float().view(S, G * M)
        self.register_buffer("member_bias", member_bias_SR)
        self.members_GM = members_GM

    def forward(self, ranks_NC: Tensor, layer_N: Tensor, rank_N: Tensor) -> Float[Tensor, ""]:
        """Mean number of bits per token."""
        G, M = self.members_GM.shape
        hidden = F.relu(self.embedding[ranks_NC].flatten(1) @ self.first + self.first_bias[layer_N])
        hidden = F.relu(hidden @ self.second + self.second_bias)
        group_repeat_NC, member_repeat_NC = (hidden @ self.repeat + self.repeat_bias).chunk(2, dim=1)
        group_N, there_NC = rank_N // M, ranks_NC < G * M
        logits_NG = hidden @ self.group + self.group_bias[layer_N]
        logits_NG = logits_NG.scatter_add(1, (ranks_NC // M).clamp(max=G - 1), group_repeat_NC * there_NC)
        same_NC = there_NC & (ranks_NC // M == group_N[:, None])
        members_NME = self.member.view(G, M, -1)[group_N]
        logits_NM = torch.einsum("ne,nme->nm", hidden @ self.query, members_NME)
        logits_NM = logits_NM + self.member_bias.view(-1, G, M)[layer_N, group_N]
        logits_NM = logits_NM.scatter_add(1, ranks_NC % M, member_repeat_NC * same_NC)
        ln2 = float(np.log(2))
        return (F.cross_entropy(ln2 * logits_NG, group_N) + F.cross_entropy(ln2 * logits_NM, rank_N % M)) / ln2

    @torch.no_grad()
    def keep_in_range(self) -> None:
        """Clamp embeddings to eight bits, and set the embedding of no token to 0."""
        self.embedding.clamp_(-LARGEST_COMPONENT, LARGEST_COMPONENT)[-1] = 0
        self.member.clamp_(-LARGEST_COMPONENT, LARGEST_COMPONENT)

    def rounded(self) -> ContextModel:
        """The network with integer parameters."""
        products = {"first_bias": EMBEDDING_BITS + WEIGHT_BITS}
        products |= dict.fromkeys(("second_bias", "repeat_bias"), ACTIVATION_BITS + WEIGHT_BITS)
        tensors = {"members": self.members_GM.numpy().astype(np.int32)}
        for name in ("embedding", "member"):
            tensors[name] = _rounded(getattr(self, name), EMBEDDING_BITS, np.int8)
        for name in ("first", "second", "group", "query", "repeat"):
            tensors[name] = _rounded(getattr(self, name), WEIGHT_BITS, np.int16)
        for name in ("group_bias", "member_bias"):
            tensors[name] = _rounded(getattr(self, name), FINENESS, np.int16)
        for name, bits in products.items():
            tensors[name] = _rounded(getattr(self, name), bits, np.int32)
        return ContextModel(**tensors)


def train_context_model(
    images: Sequence[tuple[Grids, Int64[np.ndarray, " _"]]],
    codes_KD: Float[Tensor, "k d"],
    config: CodecTrainingConfig,
    on_step: Callable[[int, Float[Tensor, ""]], None] | None = None,
) -> ContextModel:
    """Train on tokens of images; use as many as possible, some hundred thousand tokens at least.

    Args:
        images: grids and indices of each image, all with the same number of layers.
        codes_KD: the codebook.
        config: training settings.
        on_step: called after each step with its number and the bits per token.

    Raises:
        ValueError: too few or too many codes, no images, or images with different numbers of layers.
    """
    between(MIN_VOCABULARY, MAX_VOCABULARY, vocab_size=len(codes_KD))
    members_GM = torch.from_numpy(balanced_groups(codes_KD.double().numpy()))
    sets = _sorted_by_grids(images, members_GM)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = _Network(members_GM, codes_KD, _frequencies(sets, members_GM), config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.01)
    warmup = min(50, config.steps // 4)
    sizes = torch.tensor([float(s.ranks_BL[:, 1:].numel()) for s in sets])
    for step in range(config.steps):
        fall = 0.5 * (1 + np.cos(np.pi * step / config.steps))
        optimizer.param_groups[0]["lr"] = config.lr * min(1.0, (step + 1) / (warmup + 1)) * max(0.01, float(fall))
        drawn = sets[int(torch.multinomial(sizes, 1, generator=generator))]
        b_N = torch.randint(len(drawn.ranks_BL), (config.batch_size,), generator=generator)
        l_N = torch.randint(len(drawn.layer_L), (config.batch_size,), generator=generator)
        around_NC = drawn.ranks_BL[b_N[:, None], drawn.context_LC[l_N]].long()
        bits = network(around_NC, drawn.layer_L[l_N], drawn.ranks_BL[b_N, l_N].long())
        optimizer.zero_grad()
        bits.backward()
        optimizer.step()
        network.keep_in_range()
        if on_step is not None:
            on_step(step + 1, bits.detach())
    return network.rounded()


def _principal_components(codes_KD: Tensor, E: int) -> Float[Tensor, "k e"]:
    """The first E principal components of the codes, with mean variance 1, padded with zeros."""
    centered_KD = (codes_KD - codes_KD.mean(0)).double()
    axes_DD = torch.linalg.eigh(centered_KD.T @ centered_KD)[1].flip(1)
    components = centered_KD @ axes_DD[:, :E]
    return F.pad(components / components.std().clamp(min=1e-12), (0, E - components.shape[1])).float()


def _sorted_by_grids(images: Iterable[tuple[Grids, np.ndarray]], members_GM: Tensor) -> list[_Images]:
    """Images with equal grids together, as ranks."""
    members_R = members_GM.flatten()
    nothing = len(members_R)
    rank_of = torch.empty(int(members_R.max()) + 1, dtype=torch.int32)
    rank_of[members_R[members_R >= 0]] = torch.nonzero(members_R >= 0)[:, 0].int()
    by_grids: dict[Grids, list[np.ndarray]] = {}
    for grids, indices in images:
        by_grids.setdefault(grids, []).append(indices)
    numbers = {num_layers(grids) for grids in by_grids}
    if len(numbers) != 1:
        raise ValueError(f"tokens: got images with {sorted(numbers)} token maps, expected the same number for all")
    sets = []
    for grids, several in by_grids.items():
        length = sum(map(prod, grids))
        ranks_BL = F.pad(rank_of[torch.from_numpy(np.stack(several))], (0, 1), value=nothing)
        context_LC, layer_L = np.empty((length, num_neighbours(*numbers)), np.int64), np.empty(length, np.int64)
        layers = layers_of(grids)
        for number, layer in enumerate(layers):
            y_N, x_N = (side.ravel() for side in np.indices((layer.height, layer.width)))
            context_LC[layer.places(y_N, x_N)] = neighbours(layers, number, y_N, x_N, length)
            layer_L[layer.places(y_N, x_N)] = number
        sets.append(_Images(ranks_BL, torch.from_numpy(context_LC), torch.from_numpy(layer_L)))
    return sets


def _frequencies(sets: Sequence[_Images], members_GM: Tensor) -> Float[Tensor, "s r"]:
    """Frequency of each rank in each layer, smoothed by the frequency in all layers with the weight of R / 8 tokens."""
    R, S = members_GM.numel(), int(sets[0].layer_L.max()) + 1
    counts_SR = torch.zeros(S, R, dtype=torch.float64)
    for images in sets:
        for s in range(S):
            ranks = images.ranks_BL[:, :-1][:, images.layer_L == s]
            counts_SR[s] += torch.bincount(ranks.flatten(), minlength=R)
    overall_R = (counts_SR.sum(0) + 0.5) * (members_GM.flatten() >= 0) + 1e-9
    overall_R /= overall_R.sum()
    prior = R / 8
    return (counts_SR + prior * overall_R) / (counts_SR.sum(1, keepdim=True) + prior)


def _rounded(tensor: Tensor, bits: int, dtype: type[np.signedinteger]) -> np.ndarray:
    """The tensor in units of 2**-bits, rounded and clipped to the range of the dtype."""
    limits = np.iinfo(dtype)
    scaled = np.round(tensor.detach().double().numpy() * 2**bits)
    return np.clip(scaled, limits.min, limits.max).astype(dtype)
