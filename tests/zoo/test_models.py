"""The registry: every row builds and works, changes are applied, unknown names are refused with a list."""

import json
from pathlib import Path

import pytest
import torch

import smalti
from smalti.tokenizers import Tokenizer
from smalti.zoo import MODELS, TOKENIZERS, build, load

SIMPLE = [name for name, row in MODELS.items() if row["type"] == "SimpleVQVAE"]
"""The rows that are small enough to run here; the others are in test_families.py."""


@pytest.mark.parametrize("name", SIMPLE)
def test_every_model_is_complete_and_codes_an_image(name: str) -> None:
    assert json.loads(json.dumps(MODELS[name])) == MODELS[name]  # plain data
    model = build(name)
    assert isinstance(model, Tokenizer)
    assert model.vocab_size == MODELS[name]["vocab_size"]
    image = torch.randint(0, 256, (1, 3, 37, 50), dtype=torch.uint8)
    model.eval()
    tokens = model.encode(image)
    assert model.decode(tokens).shape == image.shape
    assert tokens.grids[-1] == (-(-37 // model.stride), -(-50 // model.stride))


@pytest.mark.parametrize("name", SIMPLE)
def test_changes_are_applied_and_the_row_stays_as_it_was(name: str) -> None:
    before = json.dumps(MODELS[name])
    model = build(name, vocab_size=33, hidden_dim=16, activation="relu")
    assert model.vocab_size == 33
    assert model.config()["hidden_dim"] == 16
    assert model.config()["activation"] == "relu"
    assert json.dumps(MODELS[name]) == before


def test_a_quantizer_may_be_given_as_its_configuration() -> None:
    quantizer = smalti.VectorQuantizer(512, 64, metric="cosine").config()
    assert build("simple", quantizer=quantizer, hidden_dim=16).quantizer.config() == quantizer


def test_one_argument_gives_the_multi_scale_model_the_one_codebook_of_var(tmp_path: Path) -> None:
    assert len(build("multi-scale", hidden_dim=16).quantizer.quantizers) == 6
    model = build("multi-scale", hidden_dim=16, num_codebooks=1)
    assert model.quantize.embedding.weight.shape == (512, 32)
    model.save_pretrained(tmp_path)
    assert load(tmp_path).quantizer.config() == model.quantizer.config()
    with pytest.raises(ValueError, match="num_codebooks: got 1, expected None without patch_nums"):
        build("simple", num_codebooks=1)


def test_build_and_save_and_load(tmp_path: Path) -> None:
    model = build("multi-scale", hidden_dim=16, vocab_size=20).eval()
    model.save_pretrained(tmp_path)
    image = torch.rand(1, 3, 20, 12) * 2 - 1
    assert torch.equal(load(tmp_path)(image).reconstruction, model(image).reconstruction)
    assert smalti.load is load
    assert smalti.build is build


@pytest.mark.usefixtures("unchecked")
def test_unknown_names_are_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'enormous'.*simple"):
        build("enormous")
    with pytest.raises(ValueError, match=r"'vocabulary'.*vocab_size"):
        build("simple", vocabulary=3)
    with pytest.raises(ValueError, match="'type'"):
        build("simple", type="Magic")


def test_every_row_names_a_known_class() -> None:
    assert {row["type"] for row in MODELS.values()} <= set(TOKENIZERS)
    for name, cls in TOKENIZERS.items():
        assert cls.__name__ == name
