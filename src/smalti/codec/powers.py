"""Powers of two in integer arithmetic: the exponential function of the coder.

A library's exp2 may differ in the last digit between machines, and one wrong digit would corrupt all later tokens.
"""

from functools import cache
from math import isqrt

import numpy as np
from jaxtyping import Int64

FINENESS = 5
"""Logits are in units of 2 ** -5 bit."""
TOP = 24
"""The most likely symbol has the weight 2 ** 24; no symbol has less than 1."""


@cache
def _table() -> Int64[np.ndarray, " n"]:
    """floor(2 ** (TOP - i / 32)) for i = 0, 1, ... up to the weight 1.

    isqrt taken five times is the floor of the 32nd root: rounding down between nested roots does not change the result.
    """
    weights = []
    for i in range((TOP << FINENESS) + 1):
        root = 1 << ((TOP << FINENESS) - i)
        for _ in range(FINENESS):
            root = isqrt(root)
        weights.append(root)
    return np.array(weights)


def to_weights(logits_NK: Int64[np.ndarray, "n k"]) -> Int64[np.ndarray, "n k"]:
    """Weights of symbols, 1 to 2 ** 24, proportional to 2 ** (logit / 32) up to rounding."""
    table = _table()
    below = logits_NK.max(axis=1, keepdims=True) - logits_NK
    return table[np.minimum(below, len(table) - 1)]
