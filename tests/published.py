"""The golden vectors of published tokenizers: which there are, and how each is read."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

FAMILY = {
    "var_vqvae": "var",
    "taming_vqgan_f16": "taming",
    "llamagen_vq16": "llamagen",
    "ibq_16384": "ibq",
    "open_magvit2": "open-magvit2",
    "maskgit_vqgan": "maskgit",
    "titok_s": "titok",
}
"""Golden tokenizers and their families in the zoo."""

OPTIONS = {"titok_s": {"num_heads": 2}}
"""What cannot be inferred and differs from the published value."""


def checkpoint(golden: Path, name: str) -> Path:
    """The publisher's file of a golden."""
    return next(path for path in (golden / name).iterdir() if path.name not in ("config.json", "expected.safetensors"))


def expected(golden: Path, name: str) -> dict[str, torch.Tensor]:
    """What the publisher's code computes, with images and reconstructions in [-1, 1]."""
    tensors = load_file(golden / name / "expected.safetensors")
    config = json.loads((golden / name / "config.json").read_text())
    for key in ("image", "reconstruction"):
        value = tensors[key] * 2 - 1 if "[0,1]" in config.get("image_range", "") else tensors[key]
        tensors[key] = value.clamp(-1, 1)
    return tensors
