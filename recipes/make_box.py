"""A run to a folder of the box, whose numbers take half the bytes: `make box RUN=runs/photo-f8`.

Refused are weights that half precision cannot hold, a folder of over 10 MB, and tokens that change too often.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from smalti.data import open_images
from smalti.formats import replace_folder
from smalti.formats.recipe import write_recipe
from smalti.formats.weights import save_tensors
from smalti.metrics import psnr
from smalti.training import read_settings
from smalti.zoo import BOXED, load
from smalti.zoo.box import BOX

LARGEST = 10_000_000
"""Bytes that a tokenizer may take in the wheel."""
FEWEST_EQUAL = 0.9
"""Share of the tokens that must stay what they were. Those that change were near ties between two codes; in a pyramid a
coarse one changes finer ones after it."""
LARGEST_LOSS = 0.01
"""Decibels that half precision may cost."""
TOLD = ("model", "model_args", "input", "optimization", "loss_weights", "seed")
"""Settings of the run that go along; the others name folders of the machine that trained it."""


def main() -> None:
    """Make the folder, look at what it does, and say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run of `smalti train`")
    parser.add_argument("--box", type=Path, default=BOX, help="where the folders of the box are")
    parser.add_argument("--images", default="embedded", help="images whose tokens are compared")
    arguments = parser.parse_args()
    settings = read_settings(arguments.run) or {}
    name = settings.get("model")
    if name not in BOXED:
        raise SystemExit(f"model: got a run of {name!r}, expected one of {', '.join(BOXED)}")
    arguments.box.mkdir(exist_ok=True)
    with replace_folder(arguments.box / name, force=True) as folder:
        shutil.copy(arguments.run / "config.json", folder)
        halved = {key: rounded(key, tensor) for key, tensor in load_file(arguments.run / "model.safetensors").items()}
        save_tensors(halved, folder / "model.safetensors", {"format": "pt"})
        (folder / "train.yaml").write_text(write_recipe({key: settings[key] for key in TOLD}), encoding="utf-8")
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > LARGEST:
            raise SystemExit(f"{name}: got {size:,} bytes, expected at most {LARGEST:,}")
        equal, loss = difference(arguments.run, folder, arguments.images)
        if equal < FEWEST_EQUAL:
            raise SystemExit(f"{name}: {equal:.2%} of the tokens stay the same, expected at least {FEWEST_EQUAL:.0%}")
        if loss > LARGEST_LOSS:
            raise SystemExit(f"{name}: half precision costs {loss:.3f} dB, expected at most {LARGEST_LOSS} dB")
    print(f"{arguments.box / name}: {size:,} bytes, fingerprint {load(arguments.box / name).fingerprint[:12]}")


def rounded(name: str, tensor: Tensor) -> Tensor:
    """A tensor in half precision; whole numbers stay as they are."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not torch.allclose(half.float(), tensor, rtol=2**-11, atol=2**-24):  # not where a number is too large
        raise SystemExit(f"{name}: got numbers up to {tensor.abs().max():g}, half precision ends at 65504")
    return half


def difference(run: Path, folder: Path, data: str) -> tuple[float, float]:
    """Which share of the images' tokens is the same, and how many decibels of PSNR are lost; both are printed."""
    full, half = load(run), load(folder)
    source = open_images(data, channels=full.image_channels)
    equal = total = 0
    decibels = []
    for index in range(len(source)):
        image = torch.tensor(source.load(index)).permute(2, 0, 1)[None]
        tokens = [model.encode(image) for model in (full, half)]
        first, second = (each.flatten() for each in tokens)
        equal, total = equal + int((first == second).sum()), total + first.numel()
        decibels.append([psnr(m.decode(t), image).item() for m, t in zip((full, half), tokens, strict=True)])
    before, after = torch.tensor(decibels).mean(0).tolist()
    print(f"{equal / total:.2%} of {total} tokens equal; PSNR {before:.3f} dB in fp32, {after:.3f} dB in fp16")
    return equal / total, before - after


if __name__ == "__main__":
    main()
