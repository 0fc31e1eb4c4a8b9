"""Damage in RUN/checkpoints: every altered byte is seen, every damaged entry named; a run goes on from a whole one."""

import json
import shutil

import pytest
import torch

from smalti.formats.weights import file_sha256
from smalti.tokenizers import SimpleVQVAE
from smalti.training import (
    OptimizationConfig,
    best_checkpoint,
    choose_runtime,
    load_checkpoint,
    read_log,
    save_checkpoint,
    start_state,
)
from smalti.training.checkpoint import check_whole, read_manifest
from smalti.training.record import RunRecord
from smalti.training.run_folder import RunFolder

SETTINGS = {"model": "simple"}


def new_state():
    torch.manual_seed(0)
    return start_state(SimpleVQVAE(4, 2, 2), OptimizationConfig(), choose_runtime("cpu", "fp32"))


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of steps 1, 2 and 3; the first is the best."""
    folder = RunFolder(tmp_path / "run")
    folder.clear()
    folder.write_settings(SETTINGS)
    state = new_state()
    for step in (1, 2, 3):
        state.step = step
        folder.save(state, quality=-float(step), notes={"images": step})
    return folder


def test_any_altered_byte_of_the_manifest_is_seen(run):
    """Whatever bit is flipped, whatever is cut off: an error in one line, or the same content as before."""
    path = run.checkpoints / "000003"
    whole, content = (path / "checkpoint.json").read_bytes(), read_manifest(path)
    flipped = [bytes([*whole[:i], whole[i] ^ 1 << i % 8, *whole[i + 1 :]]) for i in range(len(whole))]
    refused = []
    for data in (*flipped, *(whole[:n] for n in range(0, len(whole) - 1, 20))):
        (path / "checkpoint.json").write_bytes(data)
        try:
            assert read_manifest(path) == content
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > len(whole)
    assert all(line.startswith(f"{path}/checkpoint.json: is damaged") and "\n" not in line for line in refused)


def test_a_manifest_without_checksum_of_an_older_version_is_read_and_its_damage_named(run):
    path = run.checkpoints / "000003"
    manifest = json.loads((path / "checkpoint.json").read_text())
    del manifest["checksum"]
    (path / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="altered"):
        read_manifest(path)
    old = manifest | {"version": 2}
    (path / "checkpoint.json").write_text(json.dumps(old, indent=2) + "\n")
    state = new_state()
    load_checkpoint(path, state)
    assert state.step == 3
    for key in ("step", "skipped", "notes", "sha256"):
        for broken in ({k: v for k, v in old.items() if k != key}, old | {key: "x"}):
            (path / "checkpoint.json").write_text(json.dumps(broken))
            with pytest.raises(ValueError, match=f"checkpoint.json: is damaged .*{key}"):
                check_whole(path)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def make_file(path):
    shutil.rmtree(path)
    path.write_text("I was a checkpoint")


def make_empty(path):
    shutil.rmtree(path)
    path.mkdir()


HARM = {
    "a weight": lambda path: flip(path / "trained.safetensors"),
    "the average": lambda path: flip(path / "model.safetensors"),
    "the optimizer": lambda path: (path / "training.pt").write_bytes(b""),
    "the manifest": lambda path: flip(path / "checkpoint.json"),
    "no JSON": lambda path: (path / "checkpoint.json").write_text("{"),
    "no manifest": lambda path: (path / "checkpoint.json").unlink(),
    "a folder for a manifest": lambda path: [(path / "checkpoint.json").unlink(), (path / "checkpoint.json").mkdir()],
    "no config": lambda path: (path / "config.json").unlink(),
    "a file": make_file,
    "an empty folder": make_empty,
    "a dangling link": lambda path: [shutil.rmtree(path), path.symlink_to("nowhere")],
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_run_goes_on_from_the_newest_whole_checkpoint_and_names_the_damaged_one(run, harm, step):
    path = run.checkpoints / f"{step:06d}"
    HARM[harm](path)
    point = run.check_resumable(SETTINGS)
    newest = 2 if step == 3 else 3
    assert point.checkpoint.name == f"{newest:06d}"
    assert list(point.damaged) == [path]
    (line,) = run.set_aside(point)
    assert line.startswith(str(path))
    assert line.endswith(f"renamed to {step:06d}.damaged, resuming from {newest:06d}")
    state = new_state()
    load_checkpoint(point.checkpoint, state)
    assert state.step == newest
    assert best_checkpoint(run.checkpoints).name == ("000002" if step == 1 else "000001")
    state.step = 3
    run.save(state, quality=-3.0)  # what is set aside is neither in the way nor deleted
    check_whole(run.checkpoints / "000003")
    assert run.check_resumable(SETTINGS).damaged == {}
    assert (run.checkpoints / f"{step:06d}.damaged").is_symlink() or (run.checkpoints / f"{step:06d}.damaged").exists()


def test_damage_during_a_run_does_not_end_it(run):
    """An entry that becomes unreadable between two checkpoints is not the best, and goes when it is old enough."""
    make_file(run.checkpoints / "000001")
    state = new_state()
    for step in (4, 5):
        state.step = step
        save_checkpoint(run.checkpoints, state, quality=0.0)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["000004", "000005"]


def test_where_nothing_is_whole_every_entry_is_named(run):
    for harm, step in (("a weight", 1), ("a file", 2), ("the manifest", 3)):
        HARM[harm](run.checkpoints / f"{step:06d}")
    named = r"all checkpoints are damaged; {}.*000001/.*000002/.*000003/"
    with pytest.raises(ValueError, match=named.format("its weights are there.* init_from .*run ")) as caught:
        run.check_resumable(SETTINGS)
    assert "\n" not in str(caught.value)
    (run.path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=named.format("start again with force")):
        run.check_resumable(SETTINGS)


def test_a_damaged_train_yaml_is_named(run):
    for text in ("a: [", "- 1", "\x00"):
        (run.path / "train.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"train\.yaml: not a recipe") as caught:
            run.check_resumable(SETTINGS)
        assert "\n" not in str(caught.value)


def test_digits_that_are_no_number_are_no_checkpoint(run):
    (run.checkpoints / "²").mkdir()
    (run.checkpoints / "٣").mkdir()
    assert run.check_resumable(SETTINGS).damaged == {}


def test_a_damaged_line_of_the_log_costs_the_line(run):
    lines = ['{"step": 1, "loss": 0.5}', '{"step": 2, "l', "[2]", '{"step": "3"}', '{"step": 4, "loss": 0.1}']
    (run.path / "log.jsonl").write_bytes("\n".join([*lines, ""]).encode() + b"\xff\n")
    assert [line["step"] for line in read_log(run.path)] == [1, 4]
    RunRecord(run.path, 3).close()
    assert [line["step"] for line in read_log(run.path)] == [1]


def test_what_was_measured_as_not_a_number_is_not_measured(run):
    state = new_state()
    state.step = 4
    path = save_checkpoint(run.checkpoints, state, quality=float("nan"))
    assert read_manifest(path)["quality"] is None
    assert read_manifest(path)["sha256"]["training.pt"] == file_sha256(path / "training.pt")
