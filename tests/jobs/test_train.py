"""`train` from files to a run folder: exact repetition, exact resume, interruption, refusals."""

import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_runs import STEPS, StopAt, assert_same, config_for, final_state, log_without_speed

from smalti.blocks import EfficientNetLite0
from smalti.data import TransformConfig, load_image
from smalti.formats import WeightsFile
from smalti.jobs.train import TrainResult, plain_settings, train
from smalti.training import NonFiniteLossError, OptimizationConfig, read_log
from smalti.zoo import load


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eleven small smooth pictures and one file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for n in range(11):
        small = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40, 28)).save(folder / f"{n:02d}.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A run of 20 steps without interruption."""
    config = config_for(photos, tmp_path_factory.mktemp("runs") / "whole")
    return config, train(config)


def assert_same_run(one, other):
    (files, rest), (other_files, other_rest) = final_state(one), final_state(other)
    for name in ("model.safetensors", "trained.safetensors"):
        assert files[name] == other_files[name], name
    assert_same(rest, other_rest)
    assert log_without_speed(one) == log_without_speed(other)
    assert load(one).fingerprint == load(other).fingerprint
    for name in ("000008.png", "000016.png", "000020.png"):
        assert np.array_equal(load_image(f"{one}/samples/{name}"), load_image(f"{other}/samples/{name}"))


def test_the_run_folder_holds_what_is_promised(whole, photos):
    config, result = whole
    names = {path.name for path in os.scandir(config.out)}
    assert names == {
        "config.json",
        "model.safetensors",
        "train.yaml",
        "log.jsonl",
        "tensorboard",
        "samples",
        "checkpoints",
    }
    assert sorted(path.name for path in os.scandir(f"{config.out}/samples")) == [
        "000008.png",
        "000016.png",
        "000020.png",
    ]
    assert sorted(path.name for path in os.scandir(f"{config.out}/checkpoints")) == ["000018", "000020"]
    assert [line["step"] for line in read_log(config.out)] == [1, 3, 6, 9, 12, 15, 18, 20]
    assert isinstance(result, TrainResult)
    assert (result.step, result.steps, result.interrupted) == (STEPS, STEPS, False)
    assert result.last == read_log(config.out)[-1]
    assert "broken.png" in result.unreadable
    assert "skipped 1 of 12" in result.unreadable


def test_log_lines_show_the_schedule_and_every_term(whole):
    config, _ = whole
    for line in read_log(config.out):
        assert set(line["terms"]) == {"l1", "ms_ssim", "codebook", "commitment"}
        assert len(line["usage_per_scale"]) == 3
        weights = {"l1": 1.0, "ms_ssim": 0.1, "codebook": 1.0, "commitment": 1.0}
        expected = sum(weights[name] * term for name, term in line["terms"].items())
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert read_log(config.out)[0]["lr"] == pytest.approx(2e-3 / 5)
    assert read_log(config.out)[-1]["lr"] == pytest.approx(2e-3 * 0.02)


def test_the_delivered_model_is_the_averaged_one(whole):
    config, _ = whole
    model = load(config.out)
    from safetensors.torch import load_file

    averaged = load_file(f"{config.out}/checkpoints/000020/model.safetensors")
    trained = load_file(f"{config.out}/checkpoints/000020/trained.safetensors")
    delivered = model.state_dict()
    assert all(torch.equal(delivered[name], averaged[name]) for name in averaged)
    assert any(not torch.equal(averaged[name], trained[name]) for name in averaged)


def test_the_sample_picture_shows_originals_over_reconstructions(whole, photos):
    config, _ = whole
    grid = load_image(f"{config.out}/samples/000020.png")
    assert grid.shape == (16 + 2 + 16, 8 * 16 + 7 * 2, 3)
    model, transform = load(config.out), TransformConfig(size=16)
    for n in range(8):
        original = transform.apply(load_image(photos / f"{n:02d}.png"))
        assert np.array_equal(grid[:16, 18 * n : 18 * n + 16], original.permute(1, 2, 0).numpy())
        lower = grid[18:, 18 * n : 18 * n + 16].astype(int)
        reconstruction = model.decode(model.encode(original[None]))[0].permute(1, 2, 0).numpy().astype(int)
        assert abs(lower - reconstruction).max() <= 1  # one image at a time or eight may round differently


def test_two_runs_with_one_seed_are_equal_and_with_another_are_not(whole, photos, tmp_path):
    config, _ = whole
    train(replace(config, out=str(tmp_path / "again")))
    assert_same_run(config.out, str(tmp_path / "again"))
    train(replace(config, out=str(tmp_path / "other"), seed=1))
    assert load(config.out).fingerprint != load(str(tmp_path / "other")).fingerprint


def test_ten_steps_and_ten_resumed_equal_twenty(whole, photos, tmp_path):
    config, _ = whole
    parted = replace(config, out=str(tmp_path / "parted"))
    reporter = StopAt(10)
    first = train(parted, reporter)
    assert first.interrupted
    assert (first.step, first.steps) == (10, STEPS)
    assert reporter.closed
    assert sorted(path.name for path in os.scandir(f"{parted.out}/checkpoints")) == ["000006", "000010"]
    load(parted.out)  # usable as it is
    torch.rand(7)  # random numbers drawn by whoever comes between must not matter
    reporter = StopAt(None)
    second = train(replace(parted, resume=True), reporter)
    assert not second.interrupted
    assert reporter.heard == [("start", STEPS, 10), *range(11, STEPS + 1)]
    assert "after step 10" in reporter.notes[0]
    assert_same_run(config.out, parted.out)


def test_resume_after_a_kill_goes_back_to_the_last_checkpoint(whole, photos, tmp_path):
    config, _ = whole
    killed = replace(config, out=str(tmp_path / "killed"))

    class Killed(StopAt):
        def step(self, step):
            if step == self.at:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(killed, Killed(11))
    assert [path.name for path in os.scandir(f"{killed.out}/checkpoints")] == ["000006"]
    assert [line["step"] for line in read_log(killed.out)] == [1, 3, 6, 9]
    train(replace(killed, resume=True))
    assert_same_run(config.out, killed.out)


def test_damaged_checkpoints_are_named_and_the_run_ends_as_if_nothing_had_happened(whole, photos, tmp_path):
    config, _ = whole
    harmed = replace(config, out=str(tmp_path / "harmed"))
    train(harmed, StopAt(14))
    checkpoints = Path(harmed.out, "checkpoints")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["000012", "000014"]
    (checkpoints / "000014" / "trained.safetensors").write_bytes(b"")
    (checkpoints / "000020").write_text("a file in the way")
    reporter = StopAt(None)
    train(replace(harmed, resume=True), reporter)
    assert "000014/trained.safetensors: is damaged" in reporter.notes[0]
    assert "resuming from 000012" in reporter.notes[0]
    assert "000020/checkpoint.json: cannot be read" in reporter.notes[1]
    assert "after step 12" in reporter.notes[2]
    assert_same_run(config.out, harmed.out)


def test_resuming_on_other_images_says_so(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    config = config_for(folder, tmp_path / "run", steps=2)
    train(config)
    same, other = StopAt(None), StopAt(None)
    train(replace(config, resume=True), same)
    (folder / "00.png").rename(folder / "99.png")
    train(replace(config, resume=True), other)
    assert len(same.notes) == 1
    assert len(other.notes) == 2
    assert "differ from those of the first part" in other.notes[1]


def test_a_run_that_ends_below_one_mean_colour_says_so_once(photos, tmp_path):
    hopeless = StopAt(None)
    train(config_for(photos, tmp_path / "run", steps=7), hopeless)
    (said,) = [note for note in hopeless.notes if "one mean colour" in note]
    assert said.startswith("after 7 steps PSNR is ")
    quality = json.loads((tmp_path / "run/checkpoints/000007/checkpoint.json").read_text())["quality"]
    assert f"{quality:.2f} dB, below" in said


def test_resuming_a_finished_run_with_more_steps_goes_on(photos, tmp_path):
    config = config_for(photos, tmp_path / "run", steps=2)
    train(config)
    same = train(replace(config, resume=True))
    assert (same.step, same.interrupted, dict(same.last)) == (2, False, {})
    longer = replace(config, resume=True, optimization=replace(config.optimization, steps=4))
    assert train(longer).step == 4
    assert [line["step"] for line in read_log(config.out)] == [1, 2, 3, 4]
    assert yaml.safe_load(Path(config.out, "train.yaml").read_text())["optimization"]["steps"] == 4


def test_callers_random_state_and_signal_handlers_are_left_alone(photos, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    handler = signal.getsignal(signal.SIGINT)
    torch.manual_seed(5)
    train(config_for(photos, tmp_path / "run", steps=1))
    assert torch.equal(torch.rand(1), expected)
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_runs_in_a_thread_too(photos, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(config_for(photos, tmp_path / "run", steps=1))))
    thread.start()
    thread.join()
    assert results[0].step == 1


def test_the_recorded_settings_are_the_config(whole):
    config, _ = whole
    settings = yaml.safe_load(Path(config.out, "train.yaml").read_text())
    assert settings == plain_settings(config)
    assert settings["input"]["size"] == 16
    assert not {"resume", "force"} & settings.keys()


def test_a_run_is_not_replaced_unless_forced(whole, photos, tmp_path):
    config = config_for(photos, tmp_path / "run", steps=2)
    train(config)
    with pytest.raises(FileExistsError, match=r"continue it with resume=True or replace it with force=True"):
        train(config)
    train(replace(config, force=True, optimization=replace(config.optimization, steps=1)))
    assert [path.name for path in os.scandir(f"{config.out}/checkpoints")] == ["000001"]
    assert [line["step"] for line in read_log(config.out)] == [1]


class AnotherComes(StopAt):
    """Starts further trainings in the folder at each step of the first."""

    def __init__(self, *commands):
        super().__init__(at=0)
        self.commands, self.refused = commands, []

    def step(self, step):
        for command in self.commands:
            with pytest.raises(FileExistsError) as error:
                train(command)
            self.refused.append(str(error.value))


def test_two_trainings_never_share_a_folder(photos, tmp_path):
    config = config_for(photos, tmp_path / "run", steps=1)
    reporter = AnotherComes(replace(config, resume=True), replace(config, force=True))
    train(config, reporter)
    assert (
        reporter.refused
        == [f"out: process {os.getpid()} trains in {config.out}; wait until it ends or choose another name"] * 2
    )
    assert len(read_log(config.out)) == 1
    train(replace(config, resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "/nowhere"}, "nowhere"),
        ({"model": "nope"}, "model: got 'nope'"),
        ({"model_args": {"vocab": 3}}, "vocab"),
        ({"model_args": {"norm": "loud"}}, "norm: got 'loud'"),
        ({"loss_weights": {"l3": 1.0}}, "l3"),
        ({"device": "toaster"}, "device: got 'toaster'"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(photos, tmp_path, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        train(config_for(photos, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("log_every", 0),
        ("sample_every", 0),
        ("checkpoint_every", -1),
        ("seed", -1),
        ("workers", -1),
        ("precision", "fp8"),
        ("channels_last", "maybe"),
        ("loss_weights", {"l1": float("nan")}),
    ],
)
def test_impossible_settings_are_refused_when_the_config_is_built(unchecked, photos, tmp_path, field, value):
    with pytest.raises(ValueError, match=field.split("_")[0]):
        config_for(photos, tmp_path, **{field: value})


def test_resume_and_force_exclude_each_other(photos, tmp_path):
    with pytest.raises(ValueError, match="resume, force"):
        config_for(photos, tmp_path, resume=True, force=True)


def test_a_diverging_loss_names_term_step_and_files_and_keeps_the_last_checkpoint(photos, tmp_path):
    config = config_for(photos, tmp_path / "run", loss_weights={"l2": 1.0})
    wild = OptimizationConfig(
        steps=200, batch_size=4, lr=1e18, warmup_steps=0, grad_clip=float("inf"), weight_decay=0.0
    )
    with pytest.raises(NonFiniteLossError, match=r"became (nan|inf) at step \d+, on \d\d\.png"):
        train(replace(config, optimization=wild, checkpoint_every=1))
    for path in os.scandir(config.out):
        assert not path.name.startswith(".")


def test_workers_change_nothing(whole, photos, tmp_path):
    config, _ = whole
    parallel = replace(config, out=str(tmp_path / "parallel"), workers=1)
    train(parallel)
    assert_same_run(config.out, parallel.out)


def test_grey_models_are_trained_on_grey_pictures(photos, tmp_path):
    config = config_for(photos, tmp_path / "run", steps=1)
    train(replace(config, model="simple", model_args={"hidden_dim": 8, "vocab_size": 16, "image_channels": 1}))
    assert load(config.out).image_channels == 1
    with Image.open(f"{config.out}/samples/000001.png") as picture:
        assert picture.mode == "L"


def test_a_loss_with_a_network_is_logged_recorded_and_not_saved(photos, tmp_path):
    weights = {"l1": 1.0, "efficientnet_lite0": 0.5, "codebook": 0.75, "commitment": 0.25}
    train(config_for(photos, tmp_path / "run", steps=3, loss_weights=weights))
    line = read_log(tmp_path / "run")[-1]
    assert set(line["terms"]) == set(weights)
    assert line["loss"] == pytest.approx(sum(weights[name] * term for name, term in line["terms"].items()), abs=1e-6)
    recorded = yaml.safe_load((tmp_path / "run" / "train.yaml").read_text())
    assert recorded["loss_weights"] == weights
    files = [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".safetensors", ".pt")]
    assert files
    assert sum(path.stat().st_size for path in files) < 2**20  # the network alone is 17 times that


def test_a_missing_network_is_refused_before_anything_is_written(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(EfficientNetLite0, "weights", WeightsFile(names=("missing.pth",), sha256="ab" * 32))
    config = config_for(
        photos, tmp_path / "run", loss_weights={"efficientnet_lite0": 1.0}, pretrained=str(tmp_path / "mine")
    )
    with pytest.raises(FileNotFoundError, match=f"{'ab' * 32}; searched {tmp_path}/mine/missing.pth"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_fine_tune_says_what_it_took_and_resumes_without_its_source(whole, photos, tmp_path):
    config, _ = whole
    source = tmp_path / "source"
    shutil.copytree(config.out, source)
    reporter = StopAt(None)
    tuned = config_for(photos, tmp_path / "tuned", model="auto", model_args={}, init_from=str(source))
    tuned = replace(tuned, optimization=replace(tuned.optimization, steps=2, lr=1e-6))
    train(tuned, reporter)
    assert f"weights of {source}: encoder, quantizer, decoder taken" in reporter.notes
    for ours, theirs in zip(load(tuned.out).encoder.parameters(), load(source).encoder.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # it begins where the other ended
    shutil.rmtree(source)
    longer = replace(tuned, resume=True, optimization=replace(tuned.optimization, steps=3))
    assert train(longer).step == 3
    assert load(tuned.out).config() == load(config.out).config()


def test_a_fine_tune_with_another_codebook_names_what_is_fresh(whole, photos, tmp_path):
    config, _ = whole
    reporter = StopAt(None)
    bigger = {**config.model_args, "vocab_size": 32}
    best = train(
        config_for(
            photos, tmp_path / "tuned", steps=1, model_args=bigger, init_from=f"{config.out}/checkpoints/000020"
        ),
        reporter,
    ).best
    assert "encoder taken; quantizer not taken: " in reporter.notes[1]
    assert "got shape (16, 4), expected (32, 4)" in reporter.notes[1]
    assert load(best).vocab_size == 32


def test_model_arguments_need_a_model_to_belong_to(photos, tmp_path):
    with pytest.raises(ValueError, match="expected none with init_from"):
        config_for(photos, tmp_path, model="auto", init_from="somewhere")


def test_validation_images_decide_which_checkpoint_is_best(photos, tmp_path):
    """Measured by hand on the images named, with the averaged model of the checkpoint."""
    from smalti.metrics import psnr

    config = config_for(photos, tmp_path / "run", steps=4, checkpoint_every=2, validation=str(photos))
    result = train(config)
    qualities = {}
    for path in sorted(Path(config.out, "checkpoints").iterdir()):
        model, transform = load(path), replace(config.input, crop="center", zoom=1.0, flip=False)
        images = torch.stack([transform.apply(load_image(photos / f"{n:02d}.png")) for n in range(11)])
        images = images.float() / 127.5 - 1
        qualities[path] = float(psnr(model(images).reconstruction, images).mean())
        written = json.loads((path / "checkpoint.json").read_text())["quality"]
        assert written == pytest.approx(qualities[path], abs=1e-3)
    assert Path(result.best) == max(qualities, key=qualities.get)
