"""When a run folder may be made, replaced or resumed, and that nothing foreign is ever deleted."""

import os
from pathlib import Path

import pytest
import torch

from smalti.tokenizers import SimpleVQVAE
from smalti.training import OptimizationConfig, choose_runtime, start_state
from smalti.training.checkpoint import deliver
from smalti.training.record import RunRecord
from smalti.training.run_folder import ResumePoint, RunFolder

SETTINGS = {
    "model": "simple",
    "model_args": {},
    "input": {"size": 8},
    "seed": 0,
    "optimization": {"batch_size": 4, "lr": 1},
}


@pytest.fixture
def run(tmp_path):
    """A run with one checkpoint."""
    torch.manual_seed(0)
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.clear()
    folder.write_settings(SETTINGS)
    state = start_state(SimpleVQVAE(16, 4, 8), OptimizationConfig(), choose_runtime("cpu", "fp32"))
    folder.save(state)
    return folder


def test_a_free_or_empty_place_is_taken_without_force(tmp_path):
    RunFolder(tmp_path / "new").check_new(force=False)
    RunFolder(tmp_path).check_new(force=False)


def test_whoever_waits_for_a_lazy_folder_is_not_surprised_by_an_eager_one(tmp_path, monkeypatch):
    """From Python 3.13 on, `iterdir` looks at the folder when it is called, not when it is iterated over."""
    lazy = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(list(lazy(path))))
    folder = RunFolder(tmp_path / "new")
    folder.check_new(force=False)
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        folder.check_resumable(SETTINGS)
    folder.clear()
    folder.tidy()
    folder.check_new(force=False)


def test_every_file_of_a_run_has_the_permissions_of_umask(tmp_path):
    before = os.umask(0o026)
    try:
        folder = RunFolder(tmp_path / "run")
        folder.clear()
        folder.write_settings(SETTINGS)
        for _ in range(2):
            state = start_state(SimpleVQVAE(4, 2, 2), OptimizationConfig(), choose_runtime("cpu", "fp32"))
            folder.save(state)
            state.model.save_pretrained(tmp_path / "run" / "tokenizer")
            RunRecord(tmp_path / "run").close()
    finally:
        os.umask(before)
    modes = {str(path.relative_to(folder.path)): oct(path.stat().st_mode) for path in folder.path.rglob("*")}
    assert len(modes) > 10
    assert set(modes.values()) == {oct(0o100640), oct(0o040751)}, modes


def test_a_run_is_replaced_only_by_force(run):
    with pytest.raises(FileExistsError, match=r"resume=True .*force=True"):
        run.check_new(force=False)
    run.check_new(force=True)


def test_a_folder_is_taken_by_one_at_a_time(run):
    other = RunFolder(run.path)
    run.take_again(SETTINGS)
    for take in (lambda: other.take_again(SETTINGS), lambda: other.take_new(force=True)):
        with pytest.raises(FileExistsError, match=f"process {os.getpid()} trains in"):
            take()
    run.close()
    other.take_new(force=True)
    other.close()
    assert not (run.path / ".lock").exists()


def test_a_run_that_was_made_meanwhile_is_not_taken_for_a_free_place(run):
    with pytest.raises(FileExistsError, match=r"resume=True .*force=True"):
        RunFolder(run.path).take_new(force=False)


def test_what_is_no_run_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(FileExistsError, match="not a run"):
            RunFolder(path).check_new(force=True)


def test_clearing_deletes_the_run_and_leaves_the_users_own_files(run):
    (run.path / "notes.txt").write_text("mine")
    (run.path / "samples").mkdir()
    (run.path / "samples" / "000001.png").write_bytes(b"x")
    run.clear()
    assert [path.name for path in run.path.iterdir()] == ["notes.txt"]


def test_clearing_does_not_follow_links(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("x")
    (run.path / "samples").symlink_to(outside)
    run.clear()
    assert (outside / "keep").exists()
    assert not (run.path / "samples").exists()


def test_resuming_finds_the_newest_checkpoint(run):
    assert run.check_resumable(SETTINGS) == ResumePoint(run.path / "checkpoints" / "000000", {})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "simple-f8"}, "model: got simple-f8"),
        ({"model_args": {"vocab_size": 3}}, "model_args"),
        ({"input": {"size": 16}}, "input"),
        ({"seed": 1}, "seed: got 1"),
        ({"optimization": {"batch_size": 8, "lr": 1}}, "optimization.batch_size: got 8, expected 4 "),
    ],
)
def test_resuming_with_what_would_be_another_run_is_refused(run, change, named):
    with pytest.raises(ValueError, match=named):
        run.check_resumable(SETTINGS | change)


def test_resuming_may_change_the_rest(run):
    run.check_resumable(SETTINGS | {"optimization": {"batch_size": 4, "lr": 2}, "log_every": 3})


def test_there_must_be_something_to_resume(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        RunFolder(tmp_path / "nowhere").check_resumable(SETTINGS)
    (run.path / "checkpoints" / "000000").rename(run.path / "checkpoints" / ".000000.tmp")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run.check_resumable(SETTINGS)


def test_delivering_again_replaces_the_model_and_adds_no_other_file(run):
    model = SimpleVQVAE(8, 4, 8)
    deliver(model, run.path)
    assert SimpleVQVAE.from_pretrained(str(run.path)).fingerprint == model.fingerprint
    names = {path.name for path in run.path.iterdir()}
    assert names == {"train.yaml", "config.json", "model.safetensors", "checkpoints"}


def test_a_delivery_that_fails_leaves_the_former_model(run, monkeypatch):
    before = SimpleVQVAE.from_pretrained(str(run.path)).fingerprint
    broken = SimpleVQVAE(8, 4, 8)

    def full_disk(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space"):
        deliver(broken, run.path)
    assert SimpleVQVAE.from_pretrained(str(run.path)).fingerprint == before
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")]
