"""What a run survives: kill -9 at any moment, a full disk, images that vanish, a loss that diverges."""

import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import StopAt, config_for, log_without_speed

from smalti.formats import atomic
from smalti.jobs.train import train
from smalti.training import DataError, list_checkpoints, read_log, runtime
from smalti.zoo import load


@pytest.fixture
def photos(tmp_path):
    """Forty pictures, more than a short run reads."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for n in range(40):
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{n:02d}.png")
    return folder


class At(StopAt):
    """Does something harmful after a given step."""

    def __init__(self, at, harm):
        super().__init__(at)
        self.harm = harm

    def step(self, step):
        self.heard.append(step)
        if step == self.at:
            self.harm()


def test_kill_9_at_random_moments_loses_nothing(photos, tmp_path, clean):
    """Whatever is there can be loaded after each death, and the run ends with the bits of one that never died."""
    done = clean.run(Path(__file__).with_name("killed_runs.py"), photos, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed after step") >= 3
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert load(killed).fingerprint == load(whole).fingerprint
    assert log_without_speed(killed) == log_without_speed(whole)
    assert (killed / "checkpoints/000020/trained.safetensors").read_bytes() == (
        whole / "checkpoints/000020/trained.safetensors"
    ).read_bytes()
    for folder in (killed, killed / "checkpoints", killed / "samples"):
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_full_disk_ends_with_one_line_and_a_usable_checkpoint(photos, tmp_path):
    """The limit on a file's size fails like a full disk: writes end in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, before[1]))

    config = config_for(photos, tmp_path / "run", steps=8)
    config = replace(config, checkpoint_every=3, log_every=1, sample_every=100)
    try:
        with pytest.raises(OSError, match=r"000006 cannot be written|File too large") as caught:
            train(config, At(4, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000003"]
    load(tmp_path / "run")
    assert train(replace(config, resume=True)).step == 8
    assert [line["step"] for line in read_log(config.out)] == list(range(1, 9))


def test_no_space_left_for_the_log_ends_the_same_way(photos, tmp_path, monkeypatch):
    config = replace(config_for(photos, tmp_path / "run", steps=8), checkpoint_every=3, log_every=5)

    def full(self, line):
        raise OSError(28, "No space left on device")

    def fill():
        monkeypatch.setattr("smalti.training.record.RunRecord.add", full)

    with pytest.raises(OSError, match="No space left on device"):
        train(config, At(4, fill))
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["000003"]


def test_vanished_images_end_the_run_with_its_last_step_saved(photos, tmp_path):
    """Four images are in memory when the folder goes: the run must not train on these alone."""
    config = replace(config_for(photos, tmp_path / "run", steps=50), checkpoint_every=1000)
    reporter = At(2, lambda: shutil.rmtree(photos))
    with pytest.raises(DataError, match="photos: disappeared while in use") as error:
        train(config, reporter)
    assert "\n" not in str(error.value)
    last = [heard for heard in reporter.heard if isinstance(heard, int)][-1]
    assert 2 <= last < 12
    assert [int(path.name) for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == [last]
    load(tmp_path / "run")
    assert reporter.closed


def test_vanished_images_are_noticed_with_workers_too(photos, tmp_path):
    config = replace(config_for(photos, tmp_path / "run", steps=50), checkpoint_every=1000, workers=1)
    with pytest.raises(DataError, match="photos: disappeared while in use"):
        train(config, At(1, lambda: shutil.rmtree(photos)))
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1


def test_skipped_batches_are_counted_in_log_and_summary_and_resume(photos, tmp_path, monkeypatch):
    """One picture turns every batch that it is in to NaN."""
    original = runtime.to_float

    def poisoned(image):
        values = original(image)
        values[(values.flatten(1).mean(1) > 0.999)] = float("nan")
        return values

    Image.new("RGB", (16, 16), "white").save(photos / "07.png")
    monkeypatch.setattr(runtime, "to_float", poisoned)
    config = config_for(photos, tmp_path / "run", steps=10)
    config = replace(
        config, log_every=1, optimization=replace(config.optimization, on_non_finite="skip"), checkpoint_every=5
    )
    reporter = StopAt(None)
    result = train(config, reporter)
    lines = read_log(config.out)
    assert result.skipped == 1
    assert lines[-1]["skipped"] == 1
    assert len(lines) == 9
    assert [note for note in reporter.notes if "skipped a batch" in note and "07.png" in note]
    longer = replace(config, resume=True, optimization=replace(config.optimization, steps=12))
    assert train(longer).skipped == 1


def test_temporary_names_are_recognised_as_leftovers(tmp_path):
    from smalti.training.checkpoint import remove_leftovers

    for name in ("log.jsonl", "000001", "000008.png", "train.yaml"):
        atomic._temporary(tmp_path / name).write_bytes(b"x")
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
