"""A small codec and tokens that have something to tell about each other."""

import numpy as np
import torch

from smalti.codec import CodecTrainingConfig, ContextCodec, make_codec, train_context_model

TOKENIZER = "0f" * 32
K = 22
PYRAMID = ((1, 1), (2, 2), (3, 4))
"""Scales of the images that the codec of several layers is trained on."""


def blotches(grids, seed: int) -> np.ndarray:
    """Tokens of an image: the same in neighbouring places more often than not, at every scale."""
    rng = np.random.default_rng(seed)
    parts = []
    for grid in grids:
        coarse = rng.integers(0, K, tuple(-(-side // 3) for side in grid))
        fine = coarse[tuple(np.ix_(*(np.arange(side) // 3 for side in grid)))]
        noise = rng.integers(0, K, grid)
        parts.append(np.where(rng.random(grid) < 0.15, noise, fine).ravel())
    return np.concatenate(parts)


def small_codec(grids, steps: int = 60, images: int = 100) -> ContextCodec:
    """Trained on blotches in a second or so."""
    codes = torch.randn(K, 3, generator=torch.Generator().manual_seed(0))
    training = CodecTrainingConfig(steps=steps, batch_size=512, lr=0.01, embedding_dim=4, hidden_dim=8)
    model = train_context_model([(grids, blotches(grids, seed)) for seed in range(images)], codes, training)
    return make_codec(model, TOKENIZER, grids)
