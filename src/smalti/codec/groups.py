"""Codes in groups of equal size, similar ones together, so that a token is told in two steps: its group, and which.

A step then chooses among about sqrt(K) symbols, where one step would choose among K. The codes are halved again and
again, each time at the median along the direction in which they vary most, as a k-d tree of principal axes does.

Legend: K codes, D components, G groups, M members of a group.
"""

import numpy as np
from jaxtyping import Float, Int64

__all__ = ["balanced_groups", "num_groups"]


def num_groups(vocab_size: int) -> int:
    """G: the power of two nearest to sqrt(K)."""
    return 1 << round(np.log2(vocab_size) / 2)


def balanced_groups(codes_KD: Float[np.ndarray, "k d"]) -> Int64[np.ndarray, "g m"]:
    """Numbers of the codes in each group; -1 fills groups that are one short."""
    parts = [np.arange(len(codes_KD))]
    while len(parts) < num_groups(len(codes_KD)):
        parts = [half for part in parts for half in _halves(part, codes_KD)]
    members_GM = np.full((len(parts), max(map(len, parts))), -1)
    for row, part in zip(members_GM, parts, strict=True):
        row[: len(part)] = part
    return members_GM


def _halves(part: np.ndarray, codes_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    own = codes_KD[part] - codes_KD[part].mean(axis=0)
    axis_D = np.linalg.eigh(own.T @ own)[1][:, -1]
    order = part[np.argsort(own @ axis_D, kind="stable")]
    return order[: len(order) // 2], order[len(order) // 2 :]
