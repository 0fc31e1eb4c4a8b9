"""Where weights lie and what else a file may be: names, folders, and downloads that brought something else."""

import gzip
import json

import pytest
import torch
from safetensors.torch import save_file
from zoo.test_damage import tiny_taming

from smalti.cli import main
from smalti.tokenizers import SimpleVQVAE
from smalti.zoo import load, load_published, open_tokenizer

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 271234\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>model.pt</title></head></html>"


@pytest.fixture(scope="module")
def weights():
    return tiny_taming()


@pytest.fixture(scope="module")
def expected(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("expected") / "model.pt"
    torch.save(weights, path)
    return load_published(path).fingerprint


@pytest.mark.parametrize(
    "name", ["model.PT", "last.pth.tar", "VQ.CKPT", "x.fp16.safetensors", "x.SafeTensors", "a.b.bin"]
)
@pytest.mark.parametrize("safe", [True, False])
def test_content_counts_whatever_the_ending(name, safe, weights, expected, tmp_path):
    (save_file if safe else torch.save)(weights, tmp_path / name)
    assert load_published(tmp_path / name).fingerprint == expected


@pytest.mark.parametrize(
    "place",
    [
        "diffusion_pytorch_model.fp16.safetensors",
        "model.ema.safetensors",
        "anything.pth.tar",
        "VQ.PT",
        "vqvae/diffusion_pytorch_model.safetensors",
        "movq/diffusion_pytorch_model.fp16.safetensors",
        "vqgan/weights.ckpt",
    ],
)
def test_weights_are_found_in_a_folder_and_in_that_of_a_pipeline(place, weights, expected, tmp_path):
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    (save_file if "safetensors" in place else torch.save)(weights, file)
    (tmp_path / "model_index.json").write_text("{}")
    for door in (load_published, open_tokenizer):
        assert door(str(tmp_path)).fingerprint == expected


def test_a_usual_name_wins_over_its_variant_and_several_unusual_ones_are_a_question(weights, expected, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    save_file({"fc.weight": torch.zeros(1)}, tmp_path / "model.fp16.safetensors")
    assert load_published(tmp_path).fingerprint == expected
    (tmp_path / "model.safetensors").rename(tmp_path / "first.safetensors")
    (tmp_path / "model.fp16.safetensors").rename(tmp_path / "second.pt")
    with pytest.raises(ValueError, match=r"holds first\.safetensors, second\.pt; give one"):
        open_tokenizer(str(tmp_path))


def test_a_saved_model_of_ours_is_no_publishers(tmp_path):
    model = SimpleVQVAE(8, 4, 4)
    model.save_pretrained(tmp_path / "run")
    assert open_tokenizer(str(tmp_path / "run")).fingerprint == model.fingerprint
    (tmp_path / "run/model.safetensors").write_bytes(LFS)
    with pytest.raises(ValueError, match="a Git LFS pointer"):
        load(tmp_path / "run")


@pytest.mark.parametrize("config", [b"\xff\xfe{", b"{", b"[]", b"", b"[" * 100_000])
def test_a_damaged_config_is_named(config, tmp_path):
    SimpleVQVAE(8, 4, 4).save_pretrained(tmp_path / "run")
    (tmp_path / "run/config.json").write_bytes(config)
    for door in (load, open_tokenizer):
        with pytest.raises(ValueError, match=r"run/config\.json: ") as caught:
            door(str(tmp_path / "run"))
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (LFS, "a Git LFS pointer"),
        (PAGE, "a web page"),
        (b"\xef\xbb\xbf<html>", "a web page"),
        (b"<?xml version='1.0'?><Error>NoSuchKey</Error>", "a web page or XML"),
        (b'{"error": "Repository not found"}', "JSON text"),
        (gzip.compress(b"weights", mtime=0), "a gzip archive"),
        (b"", "empty"),
        (b"Access to this model is restricted.", "neither a readable PyTorch file nor safetensors"),
        (b"Entry not found", "neither a readable PyTorch file nor safetensors"),
    ],
)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_what_a_download_brought_is_said_without_advice_to_run_it(content, what, name, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    assert main(["import", str(tmp_path / name), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert what in said
    assert name in said
    assert "weights_only" not in said


def test_pointers_among_shards_are_named(weights, tmp_path):
    names = sorted(weights)
    save_file({name: weights[name] for name in names[::2]}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(LFS)
    shards = {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ValueError, match=r"b\.safetensors is a Git LFS pointer"):
        load_published(tmp_path)
