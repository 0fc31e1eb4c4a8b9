"""`smalti train` with two processes: as one process, and resumed to the bit under torchrun and accelerate launch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from clean_interpreter import CleanInterpreter
from PIL import Image
from safetensors.torch import load_file
from small_runs import ACCELERATE, TORCHRUN, assert_same, config_for, final_state, log_without_speed

from smalti.jobs.train import plain_settings, train
from smalti.training import OptimizationConfig
from smalti.zoo import load

pytest.importorskip("accelerate")


def launch(clean: CleanInterpreter, launcher: list[str], *arguments: str) -> None:
    done = clean.run(*launcher, "-m", "smalti.cli", "train", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained ") == 1  # the first process alone speaks
    assert "destroy_process_group" not in done.stderr  # and none leaves without a word


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A config whose learning rate does not depend on the number of steps: a short run is half of a long one."""
    folder = tmp_path_factory.mktemp("many")
    photos = folder / "photos"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for n in range(11):
        small = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40, 28)).save(photos / f"{n:02d}.png")
    (photos / "broken.png").write_bytes(b"not a picture")
    steps = OptimizationConfig(steps=8, batch_size=8, accumulate=2, lr=2e-3, warmup_steps=2, min_lr_ratio=1.0)
    config = replace(config_for(photos, folder / "one"), optimization=steps, log_every=1, workers=1)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain_settings(config)))
    return config, str(path)


@pytest.fixture(scope="module")
def whole(recipe, clean):
    """Eight steps without an interruption."""
    _, path = recipe
    out = str(Path(path).with_name("whole"))
    return out, clean.train_together("smalti", "train", "--config", path, "--out", out)


def test_the_first_process_alone_speaks(whole):
    _, done = whole
    assert done.stdout.count("trained 8 steps") == 1
    assert done.stderr.count("2 processes") == 1
    assert done.stderr.count("step 8/8") == 1
    assert done.stderr.count("skipped 1 of 12 images: broken.png") == 1


def test_two_processes_do_what_one_does(whole, recipe):
    config, _ = recipe
    train(replace(config, workers=0))
    for line, expected in zip(log_without_speed(whole[0]), log_without_speed(config.out), strict=True):
        assert line["terms"] == pytest.approx(expected["terms"], rel=1e-4)
        assert line["usage_per_scale"] == expected["usage_per_scale"]
    for file in ("model.safetensors", "trained.safetensors"):
        ours, theirs = (load_file(f"{run}/checkpoints/000008/{file}") for run in (whole[0], config.out))
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-3)


def test_four_steps_and_four_resumed_equal_eight(whole, recipe, clean):
    """The first four by accelerate launch, the others by torchrun."""
    _, path = recipe
    out = str(Path(path).with_name("parted"))
    launch(clean, ACCELERATE, "--config", path, "--out", out, "--workers", "0", "--optimization.steps", "4")
    launch(clean, TORCHRUN, "--config", path, "--out", out, "--workers", "0", "--resume")
    (files, rest), (whole_files, whole_rest) = final_state(out, 8), final_state(whole[0], 8)
    assert {**files, "training.pt": ""} == {**whole_files, "training.pt": ""}
    assert len(rest["random"]) == 2
    assert not torch.equal(rest["random"][0]["cpu"], rest["random"][1]["cpu"])
    assert_same(rest, whole_rest)
    assert log_without_speed(out) == log_without_speed(whole[0])
    assert load(out).fingerprint == load(whole[0]).fingerprint


def test_a_mistake_is_one_line_whoever_made_it(recipe, clean):
    _, path = recipe
    out = str(Path(path).with_name("refused"))
    command = ["smalti", "train", "--config", path, "--out", out, "--optimization.batch_size", "6"]
    done = clean.run(*command, processes=2)
    assert done.returncode == 2
    line = "smalti train: error: batch_size: got 6, expected a multiple of 4 (processes 2 x accumulate 2)\n"
    assert done.stderr.count(line) == 1
    assert not Path(out).exists()
