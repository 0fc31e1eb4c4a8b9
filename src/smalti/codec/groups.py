"""Groups of equal size with similar codes, so that a token is coded in two steps: its group, then its member.

Each step chooses among about sqrt(K) symbols instead of K. The codes are split repeatedly into halves, at the median
along the direction of largest variance, like a k-d tree with principal axes.

Legend: K codes, D dimensions, G groups, M members of a group.
"""

import numpy as np
from jaxtyping import Float, Int64


def num_groups(vocab_size: int) -> int:
    """G: the power of two nearest to sqrt(K)."""
    return 1 << round(np.log2(vocab_size) / 2)


def balanced_groups(codes_KD: Float[np.ndarray, "k d"]) -> Int64[np.ndarray, "g m"]:
    """Indices of the codes in each group; -1 pads groups with one code less."""
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
