"""The golden vectors of published tokenizers: which there are, and how each is read."""

import json
from pathlib import Path
from shutil import copy

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
    "simvq": "simvq",
    "movqgan": "movqgan",
    "rqvae": "rqvae",
    "maskbit": "maskbit",
    "showo_magvit2": "showo-magvit2",
    "emu35_ibq": "emu35-ibq",
    "wetok": "wetok",
    "cosmos_di": "cosmos-di",
    "dalle_dvae": "dalle-dvae",
    "infinity_bsq": "infinity-bsq",
}
"""Golden tokenizers and their families in the zoo."""

OPTIONS = {"titok_s": {"num_heads": 2}}
"""What cannot be inferred and differs from the published value."""


def checkpoint(golden: Path, name: str) -> Path:
    """The publisher's file of a golden."""
    if name == "dalle_dvae":  # the .pkl beside it cannot be read
        return golden / name / "encoder.pth"
    beside = ("config.json", "config.yaml", "expected.safetensors")
    return min(path for path in (golden / name).iterdir() if path.name not in beside)


def moved(golden: Path, name: str, folder: Path) -> Path:
    """The publisher's file in another folder, with what its publisher puts beside it."""
    for beside in ("config.yaml", "decoder.pth"):
        if (golden / name / beside).is_file():
            copy(golden / name / beside, folder)
    return Path(copy(checkpoint(golden, name), folder))


def expected(golden: Path, name: str) -> dict[str, torch.Tensor]:
    """What the publisher's code computes, with images and reconstructions in [-1, 1]."""
    tensors = load_file(golden / name / "expected.safetensors")
    config = json.loads((golden / name / "config.json").read_text())
    for key in ("image", "reconstruction"):
        unit = str(config.get("image_range", "")).replace(" ", "").startswith("[0,1]")
        value = tensors[key] * 2 - 1 if unit else tensors[key]
        tensors[key] = value.clamp(-1, 1)
    for key in [key for key in tensors if key.startswith("bits.")]:  # in place of integers, which cannot hold 64 bits
        tensors[key.replace("bits", "indices")] = tensors.pop(key).flatten(1).long()
    return tensors
