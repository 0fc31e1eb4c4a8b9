"""Published checkpoints, token for token: indices equal, values within 2e-4 of what the publisher's code computes."""

import re

import pytest
import torch
from published import FAMILY, OPTIONS, checkpoint, expected, moved
from safetensors.torch import save_file

from smalti.tokenizers import Tokens
from smalti.zoo import load, load_published, read_published

TOLERANCE = 2e-4
SURE = 1e-4
"""Margin between the best and the second code above which the choice is certain."""


@pytest.fixture(scope="module", params=FAMILY)
def row(request, golden, tmp_path_factory):
    """Name, loaded checkpoint and expected values of each golden; the config.json beside it is not the publisher's."""
    name = request.param
    file = moved(golden, name, tmp_path_factory.mktemp(name))
    return name, read_published(file, **OPTIONS.get(name, {})), expected(golden, name)


@torch.no_grad()
def test_family_and_latent(row):
    name, published, values = row
    assert published.family == FAMILY[name]
    assert not published.model.training
    assert (published.model._latent(values["image"]) - values["latent"]).abs().max() < TOLERANCE


@torch.no_grad()
def test_indices(row):
    _, published, values = row
    tokens = published.model.encode(values["image"])
    if "indices" not in values:  # multi-scale: equal everywhere
        assert len(tokens.indices) == sum(key.startswith("indices.") for key in values)
        for k, scale in enumerate(tokens.indices):
            assert torch.equal(scale.flatten(1).long(), values[f"indices.{k:02d}"])
        return
    sure = values["margin"] > SURE
    assert sure.float().mean() > 0.95
    assert torch.equal(tokens.indices[0][sure], values["indices"][sure])


@torch.no_grad()
def test_reconstruction_from_published_indices(row):
    _, published, values = row
    tokenizer = published.model
    scales = sorted(key for key in values if re.fullmatch(r"indices(\.\d+)?", key))
    sequence, own = torch.cat([values[key].flatten(1) for key in scales], dim=1), tokenizer.encode(values["image"])
    image = tokenizer.decode(Tokens.unflatten(sequence, own.grids, own.image_size, own.vocab_size))
    assert (image - values["reconstruction"]).abs().max() < TOLERANCE
    assert (tokenizer(values["image"]).reconstruction - values["reconstruction"]).abs().max() < TOLERANCE


@torch.no_grad()
def test_saved_and_loaded_again(row, tmp_path):
    _, published, values = row
    tokenizer = published.model
    tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.config()["source"]["family"] == published.family
    assert again.config()["source"]["licence"]
    tokens = tokenizer.encode(values["image"])
    assert torch.equal(again.decode(tokens), tokenizer.decode(tokens))


def test_training_entries_are_ignored_and_said(golden):
    assert "loss (2 tensors)" in read_published(checkpoint(golden, "taming_vqgan_f16")).ignored
    assert "steps" in read_published(checkpoint(golden, "llamagen_vq16")).ignored


@torch.no_grad()
def test_ibq_uses_averaged_weights(golden, tmp_path):
    tree = torch.load(checkpoint(golden, "ibq_16384"), weights_only=True)
    raw = {key: value for key, value in tree["state_dict"].items() if not key.startswith("model_ema.")}
    torch.save({"state_dict": raw}, tmp_path / "raw.ckpt")
    averaged, plain = load_published(checkpoint(golden, "ibq_16384")), load_published(tmp_path / "raw.ckpt", "ibq")
    name = "encoder.stem.weight"
    assert torch.equal(averaged.state_dict()[name], tree["state_dict"]["model_ema.encoderconv_inweight"].float())
    assert torch.equal(plain.state_dict()[name], raw["encoder.conv_in.weight"].float())
    assert not torch.equal(averaged.state_dict()[name], plain.state_dict()[name])


@torch.no_grad()
def test_llamagen_prefers_its_ema_entry(golden, tmp_path):
    weights = torch.load(checkpoint(golden, "llamagen_vq16"), weights_only=True)["model"]
    averaged = {key: value * 0.5 for key, value in weights.items()}
    torch.save({"model": weights, "ema": averaged, "optimizer": {"state": {0: {"step": 1}}}}, tmp_path / "last.pt")
    published = read_published(tmp_path / "last.pt")
    assert published.place == "ema"
    assert {"model", "optimizer"} <= set(published.ignored)
    assert torch.equal(published.model.state_dict()["encoder.stem.weight"], averaged["encoder.conv_in.weight"].float())


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("module.", ".pth"),
        ("_orig_mod.", ".bin"),
        ("module._orig_mod.", ".safetensors"),
        ("first_stage_model.", ".pth"),
        ("gen_vision_model.", ".safetensors"),
    ],
)
def test_prefixes_and_containers(prefix, suffix, golden, tmp_path):
    weights = torch.load(checkpoint(golden, "llamagen_vq16"), weights_only=True)["model"]
    renamed = {prefix + name: tensor.contiguous() for name, tensor in weights.items()}
    path = tmp_path / f"model{suffix}"
    save_file(renamed, path) if suffix == ".safetensors" else torch.save({"state_dict": renamed}, path)
    assert load_published(path).fingerprint == load_published(checkpoint(golden, "llamagen_vq16")).fingerprint


@torch.no_grad()
def test_metric_is_an_argument(golden):
    image = expected(golden, "taming_vqgan_f16")["image"]
    path = checkpoint(golden, "taming_vqgan_f16")
    found = {metric: load_published(path, metric=metric).encode(image) for metric in ("euclidean", "cosine", "dot")}
    tokenizer = load_published(path)
    z = tokenizer._latent(image).movedim(1, -1).reshape(-1, tokenizer.Cvae).double()
    codes = tokenizer.quantizer.embedding.weight.double()
    assert torch.equal(found["dot"].indices[0].flatten(), (z @ codes.T).argmax(1))
    unit = torch.nn.functional.normalize(z, dim=1) @ torch.nn.functional.normalize(codes, dim=1).T
    assert torch.equal(found["cosine"].indices[0].flatten(), unit.argmax(1))
    assert torch.equal(found["euclidean"].indices[0].flatten(), torch.cdist(z, codes).argmin(1))


@torch.no_grad()
@pytest.mark.parametrize("name", ["taming_vqgan_f16", "open_magvit2", "var_vqvae", "maskgit_vqgan"])
def test_images_of_any_size(name, golden):
    tokenizer = load_published(checkpoint(golden, name))
    image = expected(golden, name)["image"][:1, :, :70, :45]
    tokens = tokenizer.encode(image)
    assert tokens.grids[-1] == (5, 3)
    assert tokenizer.decode(tokens).shape == image.shape
    bytes_in = ((image + 1) * 127.5).round().to(torch.uint8)
    assert tokenizer.decode(tokenizer.encode(bytes_in)).dtype == torch.uint8


def test_titok_refuses_larger_images(golden):
    tokenizer = load_published(checkpoint(golden, "titok_s"), num_heads=2)
    assert tokenizer.encode(torch.zeros(1, 3, 100, 128)).grids == ((1, 32),)
    assert tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 100, 128))).shape == (1, 3, 100, 128)
    with pytest.raises(ValueError, match="at most 128x128"):
        tokenizer.encode(torch.zeros(1, 3, 129, 128))
