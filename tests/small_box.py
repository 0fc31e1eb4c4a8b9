"""A box whose tokenizers are so small that commands with them take no time."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.data import TransformConfig
from smalti.formats.recipe import write_recipe
from smalti.jobs.train import TrainConfig, plain_settings
from smalti.zoo import build

ROOT = Path(__file__).resolve().parent.parent
NETWORK = {"patch": 4, "widths": [8], "blocks": [1]}
CODES = {"num_embeddings": 16, "embedding_dim": 4}
SIZES: dict[str, dict[str, Any]] = {
    "photo-f8": {"quantizer": CODES},
    "photo-pyramid": {"quantizer": {**CODES, "patch_nums": [1, 2, 4], "quantizer": CODES}},
}
"""What makes the models of the box small: stride 4, K = 16, pictures of 16 x 16 pixels."""


def small_run(model: str, out: Path) -> Path:
    """What a run of five steps leaves of a tokenizer, as far as the box is concerned."""
    sizes = {"encoder": NETWORK, "decoder": NETWORK, "vocab_size": 16, "embedding_dim": 4, **SIZES[model]}
    torch.manual_seed(0)
    tokenizer = build(model, **sizes).train()
    for _ in range(5):
        tokenizer(torch.rand(4, 3, 16, 16) * 2 - 1)
    tokenizer.save_pretrained(out)
    config = TrainConfig("photos", str(out), model, sizes, input=TransformConfig(size=16), loss_weights={"l2": 1.0})
    (out / "train.yaml").write_text(write_recipe(plain_settings(config)), encoding="utf-8")
    return out


def some_photos(folder: Path) -> Path:
    """Six smooth pictures of 24 x 20 pixels."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for n in range(6):
        small = generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((24, 20)).save(folder / f"{n}.png")
    return folder


def make_box(*arguments: str | Path) -> None:
    """Run `recipes/make_box.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make_box.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "recipes" / "make_box.py"), run_name="__main__")


def fill_box(folder: Path) -> Path:
    """Put small tokenizers of all its names into a box; their runs lie beside them."""
    photos = some_photos(folder / "photos")
    for model in SIZES:
        make_box(small_run(model, folder / f"{model}-run"), "--box", folder, "--images", photos)
    return folder
