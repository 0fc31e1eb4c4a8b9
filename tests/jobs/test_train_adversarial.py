"""`train` with a discriminator: exact resume, what the log says, refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import StopAt, assert_same, config_for, final_state, log_without_speed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smalti.data import TransformConfig
from smalti.jobs.train import train
from smalti.losses import LossTable
from smalti.training import AdversarialConfig, read_log
from smalti.training.checkpoint import read_manifest
from smalti.zoo import load

ADVERSARIAL = AdversarialConfig(
    disc_start="40%", disc_warmup=4, disc_ramp=6, hidden_dim=8, num_layers=2, spectral_norm=True, augment=("color",)
)
WEIGHTS = {"l1": 1.0, "ms_ssim": 0.5, "adversarial": 0.5, "r1": 1.0, "lecam": 0.01}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for n in range(5):
        Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((40, 28)).save(
            folder / f"{n}.png"
        )
    return folder


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A run of 20 steps: the discriminator learns from step 5 on, counts from step 9 on, in full from step 15 on."""
    config = config_for(
        photos,
        tmp_path_factory.mktemp("runs") / "whole",
        loss_weights=WEIGHTS,
        adversarial=ADVERSARIAL,
        log_every=1,
        input=TransformConfig(size=20, crop="random", zoom=2.0, flip=True),
    )
    config = replace(config, model_args={**config.model_args, "patch_nums": [1, 2, 5]})
    train(config)
    return config


@pytest.mark.parametrize("step", [3, 6, 10])
def test_parted_in_any_phase_and_resumed_it_is_the_same_run(whole, tmp_path, step):
    """Both networks, both optimizers, LeCam's averages, singular vectors, random augmentation, every logged number."""
    parted = replace(whole, out=str(tmp_path / "parted"))
    assert train(parted, StopAt(step)).interrupted
    train(replace(parted, resume=True))
    (files, rest), (other_files, other_rest) = final_state(whole.out), final_state(parted.out)
    assert {"model.safetensors", "trained.safetensors"} <= files.keys()
    assert all(files[name] == other_files[name] for name in ("model.safetensors", "trained.safetensors"))
    assert len(rest["modules"]["adversary"]) > 8
    assert len(rest["optimizers"]["adversary"]["state"]) > 4
    assert_same(rest, other_rest)
    assert log_without_speed(whole.out) == log_without_speed(parted.out)


def test_the_best_is_looked_for_only_once_the_adversarial_loss_counts_in_full(whole, tmp_path, monkeypatch):
    """By PSNR the blurred images from before it would win. The measure is the distance by the loss's own network."""
    assert all(read_manifest(path)["quality"] is None for path in Path(whole.out, "checkpoints").iterdir())
    assert train(replace(whole, resume=True)).best == ""  # these losses have no network
    monkeypatch.setattr(
        LossTable, "feature_distance", lambda table, reconstruction, image: (reconstruction - image).abs().sum()
    )
    run = replace(whole, out=str(tmp_path / "run"), checkpoint_every=7)
    assert train(run).best == str(tmp_path / "run/checkpoints/000020")
    quality = {path.name: read_manifest(path)["quality"] for path in Path(run.out, "checkpoints").iterdir()}
    assert quality["000014"] is None
    assert quality["000020"] < 0


def test_the_log_tells_the_four_parts_and_adds_up(whole):
    lines = read_log(whole.out)
    assert [line["step"] for line in lines if "adversarial" in line] == list(range(5, 21))
    assert [line["step"] for line in lines if "adversarial" in line["terms"]] == list(range(9, 21))
    for line in lines:
        total = sum(line["weights"][name] * value for name, value in line["terms"].items())
        assert line["loss"] == pytest.approx(total, rel=1e-6, abs=1e-6)
        if judged := line.get("adversarial"):
            weights = {"discriminator": 1.0, "r1": 1.0, "lecam": 0.01}
            total = sum(weights[name] * value for name, value in judged["terms"].items())
            assert judged["loss"] == pytest.approx(total, rel=1e-6, abs=1e-6)
            assert 0 <= judged["accuracy"] <= 1
            ramp = min(1, max(0, line["step"] - 8) / 7)
            expected = 0.5 * ramp * judged["adaptive_weight"]
            assert line["weights"].get("adversarial", 0) == pytest.approx(expected)


def test_tensorboard_shows_the_same(whole):
    board = EventAccumulator(f"{whole.out}/tensorboard")
    board.Reload()
    for name, number in {
        "adversarial/accuracy": lambda line: line["adversarial"]["accuracy"],
        "adversarial/adaptive_weight": lambda line: line["adversarial"]["adaptive_weight"],
        "adversarial/logits_fake": lambda line: line["adversarial"]["logits_fake"],
        "adversarial/loss": lambda line: line["adversarial"]["loss"],
        "adversarial/r1": lambda line: line["adversarial"]["terms"]["r1"],
        "adversarial/weight": lambda line: line["weights"].get("adversarial", 0.0),
    }.items():
        expected = [number(line) for line in read_log(whole.out) if "adversarial" in line]
        assert [event.value for event in board.Scalars(name)] == pytest.approx(expected, rel=1e-6), name


def test_what_is_delivered_is_the_tokenizer_alone(whole):
    assert not [name for name in load(whole.out).state_dict() if "discriminator" in name]


def test_a_run_without_a_discriminator_cannot_be_resumed_with_one(photos, tmp_path):
    config = config_for(photos, tmp_path / "run", steps=2)
    train(config)
    with_one = replace(config, resume=True, loss_weights=WEIGHTS, adversarial=replace(ADVERSARIAL, disc_warmup=0))
    with pytest.raises(ValueError, match=r"without adversary; start a new run from its weights with init_from=RUN"):
        train(with_one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_weights": {"l1": 1.0, "r1": 1.0}}, "r1: got no weight for adversarial"),
        ({"adversarial": replace(ADVERSARIAL, disc_start=20)}, "disc_start: got 20, expected less than the run's 20"),
        ({"adversarial": replace(ADVERSARIAL, norm="batch")}, "norm: got 'batch', expected group or none with r1"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_written(photos, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(config_for(photos, tmp_path / "run", **{"loss_weights": WEIGHTS, "adversarial": ADVERSARIAL, **changes}))
    assert not (tmp_path / "run").exists()
