"""Checkpoints: what is read is what was written, to the bit, and nothing damaged is ever taken."""

import json
import os
import pickle
import random as stdlib_random

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from smalti.data import Batch
from smalti.formats.sealed_json import seal
from smalti.losses import LossTable
from smalti.tokenizers import SimpleVQVAE
from smalti.training import (
    OptimizationConfig,
    TokenizerObjective,
    choose_runtime,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    start_state,
    train_steps,
)
from smalti.training import checkpoint as module
from smalti.training.checkpoint import best_checkpoint, read_notes, remove_leftovers
from smalti.training.randomness import random_state, restore_random_state
from smalti.zoo import load

CONFIG = OptimizationConfig(steps=100, lr=1e-3)
CPU = torch.device("cpu")
RUNTIME = choose_runtime("cpu", "fp32")


def state_after(steps, seed=0, **model):
    torch.manual_seed(seed)
    state = start_state(SimpleVQVAE(16, 4, **{"hidden_dim": 8, **model}), CONFIG, RUNTIME)
    advance(state, steps)
    return state


def advance(state, steps):
    generator = torch.Generator().manual_seed(state.step)
    stream = (Batch(torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1, ("a", "b"), (None,) * 2) for _ in range(steps))
    objective = TokenizerObjective(state.model, LossTable({"l1": 1.0}), RUNTIME)
    training = train_steps(state, stream, objective, CONFIG, RUNTIME)
    for _ in range(steps):
        next(training)


def everything(state):
    """All tensors of a state, by name."""
    tensors = {f"model.{k}": v for k, v in state.model.state_dict().items()}
    tensors |= {f"averaged.{k}": v for k, v in state.averaged.model.state_dict().items()}
    for index, entry in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in entry.items()}
    return tensors


def test_moments_are_read_and_settings_are_those_of_the_config(tmp_path):
    """A resumed run has the weight decay and the betas that it asks for, as it has its learning rate."""
    path = save_checkpoint(tmp_path, state_after(3))
    config = OptimizationConfig(weight_decay=0.3, betas=(0.5, 0.6))
    state = start_state(SimpleVQVAE(16, 4, hidden_dim=8), config, RUNTIME)
    load_checkpoint(path, state)
    assert [(g["weight_decay"], g["betas"]) for g in state.optimizer.param_groups] == [
        (0.3, (0.5, 0.6)),
        (0, (0.5, 0.6)),
    ]
    for name, value in everything(state_after(3)).items():
        assert torch.equal(everything(state)[name], value), name


def test_round_trip_is_exact_and_so_is_what_follows(tmp_path):
    state = state_after(5)
    path = save_checkpoint(tmp_path, state, [random_state(CPU)])
    assert path == tmp_path / "000005"
    drawn, drawn_np = torch.rand(3).tolist(), np.random.rand()
    other = state_after(1, seed=9)
    (random,) = load_checkpoint(path, other)
    restore_random_state(random, CPU)
    assert stdlib_random.getstate() == random["python"]  # not what is drawn: the type check of the tests draws, too
    assert (torch.rand(3).tolist(), np.random.rand()) == (drawn, drawn_np)
    assert other.step == 5
    for name, value in everything(state).items():
        assert torch.equal(everything(other)[name], value), name
    for one in (state, other):
        torch.manual_seed(3)
        advance(one, 3)
    for name, value in everything(state).items():
        assert torch.equal(everything(other)[name], value), name


def test_only_the_newest_are_kept_and_sorted_as_numbers(tmp_path):
    state = state_after(1)
    for step in (7, 999999, 1000000):
        state.step = step
        save_checkpoint(tmp_path, state, keep=2)
    (tmp_path / "notes").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["999999", "1000000"]
    assert list_checkpoints(tmp_path / "nothing") == []


def test_notes_come_back(tmp_path):
    state = state_after(1)
    assert read_notes(save_checkpoint(tmp_path, state, notes={"images": 3, "names": ["a"]})) == {
        "images": 3,
        "names": ["a"],
    }
    assert read_notes(save_checkpoint(tmp_path, state)) == {}


def test_saving_the_same_step_again_replaces_it(tmp_path):
    state = state_after(1)
    save_checkpoint(tmp_path, state)
    with torch.no_grad():
        next(state.model.parameters()).fill_(7.0)
    path = save_checkpoint(tmp_path, state)
    other = state_after(1, seed=5)
    load_checkpoint(path, other)
    assert (next(other.model.parameters()) == 7.0).all()


@pytest.mark.parametrize("file", ["model.safetensors", "trained.safetensors", "config.json", "training.pt"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "delete"])
def test_a_damaged_file_is_refused_by_name(tmp_path, file, harm):
    state = state_after(1)
    path = save_checkpoint(tmp_path, state)
    data = bytearray((path / file).read_bytes())
    if harm == "delete":
        (path / file).unlink()
    else:
        data[len(data) // 2] ^= 1
        (path / file).write_bytes({"flip": data, "truncate": data[:-1], "empty": b""}[harm])
    with pytest.raises(ValueError, match=file) as caught:
        load_checkpoint(path, state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        (json.dumps({"format": "other", "version": 2, "step": 1, "sha256": {}}), "got other version 2"),
        (json.dumps({"format": "smalti checkpoint", "version": 1, "step": 1, "sha256": {}}), "version 1"),
    ],
)
def test_a_foreign_or_damaged_manifest_is_refused(tmp_path, text, message):
    path = save_checkpoint(tmp_path, state_after(1))
    (path / "checkpoint.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, state_after(1))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, state_after(1))
    with pytest.raises(ValueError, match="does not fit this model") as caught:
        load_checkpoint(path, state_after(1, hidden_dim=16))
    assert "\n" not in str(caught.value)


class Exploit:
    def __reduce__(self):
        return (os.mkdir, ("/tmp/smalti-test-exploit",))


def test_code_in_a_pickle_is_never_run(tmp_path):
    path = save_checkpoint(tmp_path, state_after(1))
    with (path / "training.pt").open("wb") as file:
        torch.save({"optimizer": Exploit(), "random": {}}, file, pickle_module=pickle)
    manifest = module.read_manifest(path)
    manifest["sha256"]["training.pt"] = module.file_sha256(path / "training.pt")
    (path / "checkpoint.json").write_bytes(seal(module.FORMAT, module.VERSION, manifest))
    with pytest.raises(ValueError, match="does not fit"):
        load_checkpoint(path, state_after(1))
    assert not os.path.exists("/tmp/smalti-test-exploit")  # noqa: PTH110


def test_a_write_that_is_cut_off_leaves_the_former_checkpoint_alone(tmp_path, monkeypatch):
    state = state_after(1)
    save_checkpoint(tmp_path, state)

    def cut_off(value, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module.torch, "save", cut_off)
    state.step = 2
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, state)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000001"]
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
    load_checkpoint(tmp_path / "000001", state)
    assert state.step == 1


def test_the_best_is_kept_beside_the_newest(tmp_path):
    state = state_after(1)
    for step, quality in ((1, 20.0), (2, 25.0), (3, 24.0), (4, None), (5, 23.0)):
        state.step = step
        save_checkpoint(tmp_path, state, quality=quality, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000002", "000004", "000005"]
    assert best_checkpoint(tmp_path) == tmp_path / "000002"
    state.step = 6
    save_checkpoint(tmp_path, state, quality=25.0, keep=2)  # as good, and newer
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000005", "000006"]


def test_a_checkpoint_is_a_model_that_loads(tmp_path):
    state = state_after(3)
    assert load(save_checkpoint(tmp_path, state)).fingerprint == state.averaged.model.fingerprint


def test_further_networks_their_optimizers_scaler_and_counts_come_back(tmp_path):
    def with_discriminator(seed):
        state = state_after(1)
        torch.manual_seed(seed)
        state.modules["discriminator"] = torch.nn.Linear(3, 1)
        state.optimizers["discriminator"] = torch.optim.Adam(state.modules["discriminator"].parameters())
        state.modules["discriminator"](torch.randn(4, 3)).sum().backward()
        state.optimizers["discriminator"].step()
        state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**seed)
        return state

    state, other = with_discriminator(3), with_discriminator(4)
    state.skipped = 7
    load_checkpoint(save_checkpoint(tmp_path, state), other)
    assert torch.equal(other.modules["discriminator"].weight, state.modules["discriminator"].weight)
    moments = [s.optimizers["discriminator"].state_dict()["state"][0]["exp_avg"] for s in (state, other)]
    assert torch.equal(*moments)
    assert (other.scaler.get_scale(), other.skipped) == (8.0, 7)


def test_what_a_kill_left_behind_is_removed_and_nothing_else(tmp_path):
    save_checkpoint(tmp_path, state_after(1))
    for name in (".000002.0a1b2c3d.tmp", ".000001.old.tmp", ".model-abc", ".keep", "000009"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".keep", "000001", "000009"]


@pytest.mark.parametrize("writer", ["save_model", "torch.save"])
def test_a_full_disk_is_an_os_error_and_the_former_checkpoint_stays(tmp_path, monkeypatch, writer):
    state = state_after(1)
    save_checkpoint(tmp_path, state)

    def full(*_):
        if writer == "save_model":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nmore")

    monkeypatch.setattr(*((module, "save_model") if writer == "save_model" else (module.torch, "save")), full)
    state.step = 2
    with pytest.raises(OSError, match=r"000002 cannot be written, \d+ MiB are free") as caught:
        save_checkpoint(tmp_path, state)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
