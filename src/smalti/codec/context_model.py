"""A small integer network that predicts the probability of each token from its neighbours.

    tokens around  ->  embeddings  ->  two hidden layers  ->  logits of the groups
                                                          ->  a query, whose products with the members of a group
                                                              (plus how frequent each is) are the members' logits
                                                          ->  a bonus for each neighbour: that its token comes again

Members' logits use an embedding of the codes, so similar codes share what was learned. The bonus, after pointer
networks (Merity et al. 2016, arXiv 1609.07843), models the repetition of a neighbour's token, which an embedding models
badly.

All parameters and intermediate values are integers. Matrix products run in float64, where integers below 2**53 are
exact in any order of summation. So the result does not depend on machine, threads or batch.

Units: embeddings 2**-5, activations and queries 2**-8, weights 2**-10, logits 2**-5 bit.

Legend: N tokens, C neighbours, E components of an embedding, H hidden, G groups, M members, S layers, R = G * M ranks:
a token's rank is its group * M + its place in the group, and R itself stands for no token.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from smalti.codec.neighbourhood import num_neighbours
from smalti.codec.powers import FINENESS, to_weights

EMBEDDING_BITS, ACTIVATION_BITS, WEIGHT_BITS = 5, 8, 10
"""Binary places of the three kinds of numbers."""
LARGEST = 2**15 - 1
"""Activations and queries are clipped here."""


class Prediction(NamedTuple):
    """The network's output for N tokens before their groups are known."""

    ranks_NC: Int64[np.ndarray, "n c"]
    """Ranks of the neighbours."""
    group_weights_NG: Int64[np.ndarray, "n g"]
    """How likely each group is."""
    query_NE: np.ndarray
    """What the members' embeddings are multiplied with, whole numbers as float64."""
    repeat_NC: Int64[np.ndarray, "n c"]
    """Logit of a neighbour's token for coming again within its group."""


@dataclass(frozen=True, eq=False, repr=False)
class ContextModel:
    """The parameters and the forward pass.

    Raises:
        ValueError: shapes that do not match.
    """

    members: Int[np.ndarray, "g m"]
    """The code of each rank; -1 where a group is short of one."""
    embedding: Int[np.ndarray, "r1 e"]
    """Of a token as a neighbour; the last row, of no token, is 0."""
    first: Int[np.ndarray, "ce h"]
    """Weights of the first hidden layer."""
    first_bias: Int[np.ndarray, "s h"]
    """Its bias in each layer of tokens, in the unit of its products."""
    second: Int[np.ndarray, "h h"]
    """Weights of the second hidden layer."""
    second_bias: Int[np.ndarray, " h"]
    """Its bias."""
    group: Int[np.ndarray, "h g"]
    """Weights of the groups' logits."""
    group_bias: Int[np.ndarray, "s g"]
    """Logits of the groups' frequencies in each layer."""
    query: Int[np.ndarray, "h e"]
    """Weights of the query."""
    member: Int[np.ndarray, "r e"]
    """Embedding of a token as a member of its group."""
    member_bias: Int[np.ndarray, "s r"]
    """Logits of the members' frequencies in each layer."""
    repeat: Int[np.ndarray, "h c2"]
    """Weights of the bonus that each neighbour gives its group, then of what it gives its member."""
    repeat_bias: Int[np.ndarray, " c2"]
    """Its bias."""

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
        """The matrices as float64, in which products are fast, and exact as long as all sums stay below 2**53."""
        return {
            name: getattr(self, name).astype(np.float64) for name in ("first", "second", "group", "query", "repeat")
        }

    def _product(self, a: np.ndarray, name: str) -> Int64[np.ndarray, "n k"]:
        """Product of whole numbers and a matrix of the model."""
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
        """How likely each member is of the groups that the tokens belong to."""
        (G, M), ranks_NC = self.members.shape, prediction.ranks_NC
        members_NME = self.member.reshape(G, M, -1)[groups_N].astype(np.float64)
        product = (members_NME @ prediction.query_NE[:, :, None])[:, :, 0].astype(np.int64)
        logits_NM = _shifted(product, EMBEDDING_BITS + ACTIVATION_BITS - FINENESS)
        logits_NM += self.member_bias[layer].reshape(G, M)[groups_N]
        n, c = np.nonzero(ranks_NC // M == groups_N[:, None])
        np.add.at(logits_NM, (n, ranks_NC[n, c] % M), prediction.repeat_NC[n, c])
        return to_weights(logits_NM)


def _shifted(product: np.ndarray, bits: int) -> np.ndarray:
    """Divided by 2**bits and rounded, halves upwards."""
    return (product + (1 << bits >> 1)) >> bits


def _activation(product: np.ndarray, bits: int) -> np.ndarray:
    """What a hidden layer passes on of products with so many binary places: nothing negative."""
    return np.clip(_shifted(product, bits - ACTIVATION_BITS), 0, LARGEST)
