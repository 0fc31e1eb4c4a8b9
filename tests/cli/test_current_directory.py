"""Python files among downloaded pictures never run: not in the command, not in its loaders.

Those of a Ray cluster are looked at in `tests/tokensets/test_ray_engine.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_files import MODULES, lay_out
from PIL import Image

from smalti.tokenizers import SimpleVQVAE

LOADERS = """
import sys
from smalti.cli import main
from smalti.data import TransformConfig, open_images, ordered_batches
if __name__ == "__main__":
    (batch,) = ordered_batches(open_images("photos"), TransformConfig(size=8), 8, workers=1)
    assert len(batch) == 2
    sys.exit(main())
"""
TOKENIZE = ["tokenize", "run", "photos", "--out", "tokens", "--size", "16", "--device", "cpu", "--json"]

AFTER_RUNPY = {"socket", "torch", "PIL", "numpy", "typing", "ctypes", "difflib", "email", "csv", "random", "logging"}
"""What `python -m` has not imported before a line of ours can run; a `smalti.py` is what its user asked for."""


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """A folder with pictures and a tokenizer; what is written there by `lay_out` says that it has run."""
    torch.manual_seed(0)
    model = SimpleVQVAE(32, 8, 8).train()
    model(torch.rand(8, 3, 16, 16) * 2 - 1)
    model.eval().save_pretrained(tmp_path / "downloads" / "run")
    photos = tmp_path / "downloads" / "photos"
    photos.mkdir()
    for i in range(2):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(
            photos / f"{i}.png"
        )
    return tmp_path / "downloads"


def run(command: list[str], folder: Path, **settings: str) -> dict:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | settings
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )
    assert not (folder / "ran").exists(), (folder / "ran").read_text()
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_loaders_of_a_script_and_of_the_command_import_nothing_from_here(downloads: Path) -> None:
    lay_out(downloads, MODULES)
    (downloads.parent / "script").write_text(LOADERS)
    assert run([str(downloads.parent / "script"), *TOKENIZE, "--workers", "1"], downloads)["images"] == 2


def test_the_module_as_a_command_imports_nothing_from_here(downloads: Path) -> None:
    lay_out(downloads, AFTER_RUNPY)
    assert run(["-m", "smalti.cli", *TOKENIZE], downloads)["images"] == 2
