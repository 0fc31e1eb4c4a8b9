"""Training priors: exact resume, nothing of an image on both sides, the best weights delivered, strangers refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_prior_runs import IMAGES, VIEWS, V, run, token_set, without_speed

from smalti.cli.train_prior import summary
from smalti.data import TokenBatch, TokenDataset
from smalti.formats.storage import Storage
from smalti.formats.token_set import Shard, TokenManifest, shard_name, write_manifest
from smalti.formats.token_shards import TokenRow, write_shard
from smalti.jobs.train_prior import TrainPriorResult, layout_of, split_rows
from smalti.priors import MaskedTransformer, NextTokenTransformer
from smalti.training import DataError, OptimizationConfig, best_checkpoint, list_checkpoints, read_log
from smalti.training.checkpoint import check_whole
from smalti.zoo import load_prior

pytest.importorskip("pyarrow", reason="needs the extra smalti[datasets]")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return token_set(tmp_path_factory.mktemp("data") / "tokens")


@pytest.mark.parametrize("prior", ["auto", "next-scale-small"])
def test_stopping_and_going_on_is_as_never_having_stopped(tokens: Path, tmp_path: Path, prior: str) -> None:
    """6 steps at once, and 6 steps of which the first 3 were made by another process that was then gone."""
    run(tokens, tmp_path / "once", prior=prior)
    run(tokens, tmp_path / "twice", prior=prior)
    for file in ("000006", "log.jsonl"):  # as if the process had died right after its third step
        path = tmp_path / "twice" / ("checkpoints" if file.isdigit() else "") / file
        if path.is_dir():
            for inner in path.iterdir():
                inner.unlink()
            path.rmdir()
        else:
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in lines if json.loads(line)["step"] <= 3))
    run(tokens, tmp_path / "twice", prior=prior, resume=True)
    assert without_speed(tmp_path / "twice") == without_speed(tmp_path / "once")
    for name in ("model.safetensors", "checkpoints/000006/trained.safetensors"):
        a, b = (load_file(tmp_path / which / name) for which in ("once", "twice"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name


def test_a_damaged_checkpoint_is_passed_over(tokens: Path, tmp_path: Path) -> None:
    for name in ("once", "twice"):
        run(tokens, tmp_path / name)
    newest = tmp_path / "twice/checkpoints/000006"
    (newest / "checkpoint.json").write_text("{}")
    run(tokens, tmp_path / "twice", resume=True)
    assert newest.with_name("000006.damaged").is_dir()
    assert without_speed(tmp_path / "twice") == without_speed(tmp_path / "once")
    ours, theirs = ((tmp_path / n / "checkpoints/000006/trained.safetensors").read_bytes() for n in ("once", "twice"))
    assert ours == theirs


def test_accumulating_pieces_changes_no_gradient(tokens: Path, tmp_path: Path) -> None:
    for name, accumulate in (("one", 1), ("four", 4)):
        optimization = OptimizationConfig(steps=2, batch_size=8, accumulate=accumulate, warmup_steps=0)
        run(tokens, tmp_path / name, optimization=optimization, prior_args={"depth": 1, "width": 16, "num_heads": 2,
            "class_dropout": 0.0})  # fmt: skip
    first, second = (read_log(tmp_path / name) for name in ("one", "four"))
    for a, b in zip(first, second, strict=True):
        assert a["step"] == b["step"]
        if "loss" in a:
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def test_both_views_of_an_image_are_on_the_same_side(tokens: Path) -> None:
    dataset = TokenDataset(tokens)
    training, held_out = split_rows(dataset, 0.2, 0)
    assert sorted([*training, *held_out]) == list(range(IMAGES * VIEWS))
    assert len(held_out) == 0.2 * IMAGES * VIEWS
    assert {row // VIEWS for row in training}.isdisjoint(row // VIEWS for row in held_out)
    again, other = split_rows(dataset, 0.2, 0)[1], split_rows(dataset, 0.2, 1)[1]
    assert np.array_equal(again, held_out)
    assert not np.array_equal(other, held_out)
    assert len(split_rows(dataset, 0.0, 0)[1]) == 0


def test_it_learns_and_delivers_the_best(tokens: Path, tmp_path: Path) -> None:
    result = run(tokens, tmp_path / "prior", steps=120, checkpoint_every=20)
    log = read_log(tmp_path / "prior")
    bits = [line["validation_bits_per_token"] for line in log if "validation_bits_per_token" in line]
    assert result.bits_per_token == pytest.approx(min(bits))
    assert result.bits_per_token < 2.6  # 4 equally likely tokens are 2 bits; 16 would be 4
    assert result.bits_per_pixel == pytest.approx(result.bits_per_token * 21 / 256)
    best = best_checkpoint(tmp_path / "prior" / "checkpoints")
    assert best is not None
    assert check_whole(best)["quality"] == pytest.approx(-min(bits) * np.log(2))
    assert (tmp_path / "prior" / "model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()
    prior = load_prior(tmp_path / "prior")
    assert prior.class_names == ("even", "odd")
    drawn = prior.sample(torch.tensor([0, 1] * 8), generator=torch.Generator().manual_seed(0))
    assert (drawn[::2] < 8).float().mean() > 0.9  # classes have their own tokens
    assert (drawn[1::2] >= 8).float().mean() > 0.9


def test_other_tokens_are_refused_before_the_first_step(tokens: Path, tmp_path: Path) -> None:
    run(tokens, tmp_path / "prior")
    other = tmp_path / "other"
    manifest = json.loads((tokens / "manifest.json").read_text())
    (other / "tokenizer").mkdir(parents=True)
    for path in (shard_name(0), "tokenizer/config.json", "tokenizer/model.safetensors"):
        (other / path).write_bytes((tokens / path).read_bytes())
    shards = [Shard(**shard) for shard in manifest["shards"]]
    write_manifest(Storage(other), TokenManifest("ab" * 32, V, manifest["grids"], [16, 16], {}, "photos", shards))
    with pytest.raises(ValueError, match=r"got fingerprint abababab"):
        run(other, tmp_path / "prior", resume=True)
    assert layout_of(TokenDataset(other)).fingerprint == "ab" * 32
    with pytest.raises(FileExistsError, match="continue it with resume=True"):
        run(tokens, tmp_path / "prior")
    with pytest.raises(ValueError, match="prior_args"):
        run(tokens, tmp_path / "prior", resume=True, prior_args={"depth": 2})


def test_images_without_labels_train_a_prior_without_classes(tokens: Path, tmp_path: Path) -> None:
    dataset = TokenDataset(tokens)
    assert dataset.num_classes == 2
    manifest = json.loads((tokens / "manifest.json").read_text())
    from smalti.formats.token_shards import read_shard

    rows = read_shard((tokens / shard_name(0)).read_bytes())
    bare = [TokenRow(r.key, r.image_size, r.crop, r.grids, r.indices, r.view, r.mirrored) for r in rows]
    folder, data = tmp_path / "bare", write_shard(bare, V)
    (folder / "tokenizer").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / "tokenizer" / name).write_bytes((tokens / "tokenizer" / name).read_bytes())
    storage = Storage(folder)
    storage.write(shard_name(0), data)
    shard = Shard(shard_name(0), len(bare), IMAGES, hashlib.sha256(data).hexdigest())
    write_manifest(
        storage, TokenManifest(manifest["fingerprint"], V, manifest["grids"], [16, 16], {}, "photos", [shard])
    )
    run(folder, tmp_path / "prior")
    prior = load_prior(tmp_path / "prior")
    assert prior.num_classes == 0
    assert prior.sample(torch.zeros(2, dtype=torch.int64)).shape == (2, 21)


def test_vanished_tokens_end_the_run_with_its_last_step_saved(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, batches = TokenDataset.batch, 0

    def vanish(self: TokenDataset, rows: np.ndarray) -> TokenBatch:
        nonlocal batches
        batches += 1
        if batches == 3:
            raise OSError("tokens: Input/output error")
        return read(self, rows)

    monkeypatch.setattr(TokenDataset, "batch", vanish)
    with pytest.raises(DataError, match="tokens: Input/output error"):
        run(tokens, tmp_path / "prior", checkpoint_every=100)
    assert [path.name for path in list_checkpoints(tmp_path / "prior" / "checkpoints")] == ["000002"]
    assert load_prior(tmp_path / "prior").fingerprint


def test_the_loss_of_a_masked_prior_is_not_said_to_be_a_code_length() -> None:
    result = TrainPriorResult("out", 2, 2, 1.5, 0.25, MaskedTransformer.predicted)
    assert "held-out images: 1.500 bits per masked token\n" in summary(result)
    result = TrainPriorResult("out", 2, 2, 1.5, 0.25, NextTokenTransformer.predicted)
    assert "held-out images: 1.500 bits per token, 0.2500 bits per pixel\n" in summary(result)
