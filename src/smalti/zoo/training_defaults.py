"""Default training settings of each model of the registry, as fragments of a recipe.

Models need different settings: a learning rate of 1e-3 suits small models and is ten times too high for a VQGAN. So
image size, batch size, learning rate and number of steps belong to the model. The fields are those of `smalti train`;
omitted fields keep their general default.
"""

from typing import Any

SMALL: dict[str, Any] = {
    "input": {"size": 64, "zoom": 2.0},
    "optimization": {},
    "loss_weights": {"l1": 1.0, "ms_ssim": 0.1},
}
"""For first experiments: minutes to an hour on a CPU."""

PHOTO_STEPS = {
    "lr": 6e-4,
    "warmup_steps": 300,
    "weight_decay": 0.0,
}
"""The tokenizers for photographs: small batches, which gave better quality per CPU hour than large ones."""

LARGE: dict[str, Any] = {
    "input": {"size": 256, "zoom": 1.5},
    "optimization": {
        "steps": 200_000,
        "batch_size": 64,
        "accumulate": 8,
        "lr": 1e-4,
        "warmup_steps": 2_000,
        "betas": (0.9, 0.95),
        "ema_decay": 0.9999,
    },
    "loss_weights": {"l1": 1.0, "ms_ssim": 0.5},
}
"""Networks for a GPU, batch size 8. Values common in published recipes; not tested by a training run."""

TRAINING: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("simple", "multi-scale", "patch-multi-scale"), SMALL),
    "simple-f8": {
        "input": {"size": 256, "zoom": 2.0},
        "optimization": {"steps": 50_000},
        "loss_weights": {"l1": 1.0, "ms_ssim": 0.5},
    },
    "photo-f8": {
        "input": {"size": 128, "zoom": 3.0},
        "optimization": {**PHOTO_STEPS, "batch_size": 4, "steps": 48_000, "decay_steps": 12_000},
        "loss_weights": {"l2": 4.0},
    },
    "photo-pyramid": {
        "input": {"size": 256, "zoom": 1.5},
        "optimization": {**PHOTO_STEPS, "batch_size": 2, "steps": 36_000, "decay_steps": 9_000},
        "loss_weights": {"l2": 4.0},
    },
    **dict.fromkeys(("vqgan-f8", "vqgan-f16", "var-f16", "llamagen-f16"), LARGE),
    **dict.fromkeys(("titok-s128", "titok-b64", "titok-l32", "titok-bl64", "titok-bl128", "titok-sl256"), LARGE),
}
"""Fragments by the names of `MODELS`."""
