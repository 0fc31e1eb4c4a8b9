"""A small integer network that predicts the probability of each token from its neighbours.

    neighbours  ->  embeddings  ->  two hidden layers  ->  logits of the groups
                                                       ->  a query; its products with the embeddings of a group's
                                                           members, plus their log frequencies, are the members' logits
                                                       ->  a bonus per neighbour, for the repetition of its token

Members' logits use an embedding of the codes, so similar codes share parameters. The bonus, after pointer networks
(Merity et al. 2016, arXiv 1609.07843), models the repetition of a neighbour's token, which embeddings model badly.

All parameters and intermediate values are integers. Matrix products run in float64, where sums of integers below 2**53
are exact in any order. So the result does not depend on machine, threads or batch.

Units: embeddings 2**-5, activations and queries 2**-8, weights 2**-10, logits 2**-5 bit.

Legend: N tokens, C neighbours, E dimension of an embedding, H hidden, G groups, M members, S layers, R = G * M ranks: a
token's rank is its group * M + its place in the group; rank R stands for no token.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from smalti.codec.neighbourhood import num_neighbours
from smalti.codec.powers import FINENESS, to_weights

EMBEDDING_BITS, ACTIVATION_BITS, WEIGHT_BITS = 5, 8, 10
"""Fractional bits of the three kinds of numbers."""
LARGEST = 2**15 - 1
"""Largest value of activations and queries; larger ones are clipped."""


class Prediction(NamedTuple):
    """The network's output for N tokens before their groups are known."""

    ranks_NC: Int64[np.ndarray, "n c"]
    """Ranks of the neighbours."""
    group_weights_NG: Int64[np.ndarray, "n g"]
    """Weights of the groups, proportional to their probabilities."""
    query_NE: np.ndarray
    """The queries that the members' embeddings are multiplied with, integers as float64."""
    repeat_NC: Int64[np.ndarray, "n c"]
    """Bonus of each neighbour's token among the members of its group."""


@dataclass(frozen=True, eq=False, repr=False)
class ContextModel:
    """The parameters and the forward pass.

    Raises:
        ValueError: shapes that do not match.
    """

    members: Int[np.ndarray, "g m"]
    """The code of each rank; -1 pads groups with one code less."""
    embedding: Int[np.ndarray, "r1 e"]
    """Embedding of a token as a neighbour; the last row, for no token, is 0."""
    first: Int[np.ndarray, "ce h"]
    """Weights of the first hidden layer."""
    first_bias: Int[np.ndarray, "s h"]
    """Bias of the first hidden layer for each layer of tokens, in the unit of its products."""
    second: Int[np.ndarray, "h h"]
    """Weights of the second hidden layer."""
    second_bias: Int[np.ndarray, " h"]
    """Bias of the second hidden layer."""
    group: Int[np.ndarray, "h g"]
    """Weights of the groups' logits."""
    group_bias: Int[np.ndarray, "s g"]
    """Log frequencies of the groups in each layer."""
    query: Int[np.ndarray, "h e"]
    """Weights of the query."""
    member: Int[np.ndarray, "r e"]
    """Embedding of a token as a member of its group."""
    member_bias: Int[np.ndarray, "s r"]
    """Log frequencies of the members in each layer."""
    repeat: Int[np.ndarray, "h c2"]
    """Weights of the bonus of each neighbour for its group, then for its member."""
    repeat_bias: Int[np.ndarray, " c2"]
    """Bias of the bonuses."""

    def __post_init__(self) -> None:
        (G, M), E = self.members.shape, self.embedding.shape[1]
        S, H = self.first_bias.shape
        C, R = num_neighbours(S), G * M
        expected = {
            "members": (G, M), "embedding": (R + 1, E), "first": (C * E, H), "first_bias": (S, H), "second": (H, H),
            "second_bias": (H,), "group": (H, G), "group_bias": (S, G), "query": (H, E), "member": (R, E),
            "member_bias": (S, R), "repeat": (H, 2 * C), "repeat_bias": (2 * C,),
        }  # fmt: skip
        for field in fields(self):
            shape = getattr(self, field.name).shape
            if shape != expected[field.name]:
                raise ValueError(f"codec: {field.name}: got shape {shape}, expected {expected[field.name]}")

    @cached_property
    def _weights(self) -> dict[str, np.ndarray]:
        """The matrices as float64: products are fast, and exact while all sums are below 2**53."""
        return {
            name: getattr(self, name).astype(np.float64) for name in ("first", "second", "group", "query", "repeat")
        }

    def _product(self, a: np.ndarray, name: str) -> Int64[np.ndarray, "n k"]:
        """Product of integers and a matrix of the model."""
        return (a.astype(np.float64) @ self._weights[name]).astype(np.int64)

    def predict(self, ranks_NC: Int64[np.ndarray, "n c"], layer: int) -> Prediction:
        """Predict N tokens of a layer from their neighbours."""
        embedded = self.embedding[ranks_NC].reshape(len(ranks_NC), -1)
        hidden = _activation(self._product(embedded, "first") + self.first_bias[layer], EMBEDDING_BITS + WEIGHT_BITS)
        hidden = _activation(self._product(hidden, "second") + self.second_bias, ACTIVATION_BITS + WEIGHT_BITS)
        to_logit = ACTIVATION_BITS + WEIGHT_BITS - FINENESS
        repeat = _shifted(self._product(hidden, "repeat") + self.repeat_bias, to_logit)
        logits_NG = _shifted(self._product(hidden, "group"), to_logit) + self.group_bias[layer]
        C, M = ranks_NC.shape[1], self.members.shape[1]
        n, c = np.nonzero(ranks_NC < self.members.size)
        np.add.at(logits_NG, (n, ranks_NC[n, c] // M), repeat[n, c])
        query = _shifted(self._product(hidden, "query"), WEIGHT_BITS)
        query_NE = np.clip(query, -LARGEST, LARGEST).astype(np.float64)
        return Prediction(ranks_NC, to_weights(logits_NG), query_NE, repeat[:, C:])

    def member_weights(
        self, prediction: Prediction, groups_N: Int64[np.ndarray, " n"], layer: int
    ) -> Int64[np.ndarray, "n m"]:
        """Weights of the members of each token's group, proportional to their probabilities."""
        (G, M), ranks_NC = self.members.shape, prediction.ranks_NC
        members_NME = self.member.reshape(G, M, -1)[groups_N].astype(np.float64)
        product = (members_NME @ prediction.query_NE[:, :, None])[:, :, 0].astype(np.int64)
        logits_NM = _shifted(product, EMBEDDING_BITS + ACTIVATION_BITS - FINENESS)
        logits_NM += self.member_bias[layer].reshape(G, M)[groups_N]
        n, c = np.nonzero(ranks_NC // M == groups_N[:, None])
        np.add.at(logits_NM, (n, ranks_NC[n, c] % M), prediction.repeat_NC[n, c])
        return to_weights(logits_NM)


def _shifted(product: np.ndarray, bits: int) -> np.ndarray:
    """The product divided by 2**bits and rounded, halves upwards."""
    return (product + (1 << bits >> 1)) >> bits


def _activation(product: np.ndarray, bits: int) -> np.ndarray:
    """ReLU and clipping of products with `bits` fractional bits; the result has `ACTIVATION_BITS`."""
    return np.clip(_shifted(product, bits - ACTIVATION_BITS), 0, LARGEST)
