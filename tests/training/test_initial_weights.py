"""Starting from somebody's weights: what fits is taken to the bit, the rest stays fresh and is named."""

import shutil

import pytest
import torch

from smalti.quantizers import EMAVectorQuantizer, KMeansInit
from smalti.tokenizers import SimpleVQVAE
from smalti.training import take_weights
from smalti.zoo import load_published, open_tokenizer


def model(seed=0, **changes):
    torch.manual_seed(seed)
    return SimpleVQVAE(**{"vocab_size": 16, "embedding_dim": 4, "hidden_dim": 8, **changes})


def said(report):
    return {part.part: str(part) for part in report}


def test_what_was_saved_is_taken_whole(tmp_path):
    trained, fresh = model(1), model(2)
    trained.train()(torch.randn(4, 3, 16, 16))
    trained.save_pretrained(tmp_path)
    report = take_weights(fresh, open_tokenizer(str(tmp_path)))
    assert said(report) == {part: f"{part} taken" for part in ("encoder", "quantizer", "decoder")}
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_a_codebook_that_was_taken_is_not_started_anew():
    trained, fresh = model(1), model(2)
    assert fresh.quantizer.initialising
    take_weights(fresh, trained)
    assert not fresh.quantizer.initialising
    assert fresh.quantizer.config()["init"] is None


def test_another_vocabulary_leaves_the_whole_quantizer_fresh():
    """Not even the number of batches seen is taken: the fresh codebook still has to be started from the data."""
    trained, fresh = model(1), model(2, vocab_size=32)
    trained.train()(torch.randn(4, 3, 16, 16))
    before = {name: value.clone() for name, value in fresh.quantizer.state_dict().items()}
    report = said(take_weights(fresh, trained))
    assert report["encoder"] == "encoder taken"
    assert report["quantizer"].startswith("quantizer not taken: cluster_size (got shape (16,), expected (32,))")
    assert "embedding.weight (got shape (16, 4), expected (32, 4))" in report["quantizer"]
    for name, value in fresh.quantizer.state_dict().items():
        assert torch.equal(value, before[name])
    assert fresh.quantizer.initialising


def test_another_latent_leaves_only_the_layers_at_the_latent_fresh():
    trained, fresh = model(1), model(2, embedding_dim=8)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    report = take_weights(fresh, trained)
    for part in report:
        module, source = getattr(fresh, part.part), getattr(trained, part.part)
        for name, value in module.state_dict().items():
            kept = part.part == "quantizer" or any(one.startswith(f"{name} (") for one in part.fresh)
            expected = before[f"{part.part}.{name}"] if kept else source.state_dict()[name]
            assert torch.equal(value, expected), name
    words = said(report)
    for part in ("encoder", "decoder"):
        assert "tensors of" in words[part]
        assert "expected (" in words[part]
    assert {part.part: bool(part.taken) for part in report} == {"encoder": True, "quantizer": False, "decoder": True}


def test_another_kind_of_quantizer_is_fresh():
    fresh = model(2, quantizer=EMAVectorQuantizer(16, 4, init=KMeansInit()), norm="none")
    trained = model(1, patch_nums=(1, 2, 4))
    assert "quantizer not taken: " in said(take_weights(fresh, trained))["quantizer"]


def test_nothing_in_common_is_refused_in_one_line():
    with pytest.raises(ValueError, match="no tensor fits this model") as caught:
        take_weights(model(1), model(2, hidden_dim=16, vocab_size=32, embedding_dim=8, image_channels=1))
    assert "\n" not in str(caught.value)


def test_a_published_checkpoint_is_a_source(golden, tmp_path):
    file = golden / "taming_vqgan_f16" / "last.ckpt"
    published = load_published(file)
    source = open_tokenizer(str(file))
    assert source.fingerprint == published.fingerprint
    copy = type(source)(**{**source.config(), "quantizer": type(source.quantizer)(**_arguments(source.quantizer))})
    take_weights(copy, source)
    assert torch.equal(copy.quantizer.get_codebook(), published.quantizer.get_codebook())


def _arguments(quantizer):
    return {name: value for name, value in quantizer.config().items() if name != "type"}


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_tokenizer(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        open_tokenizer(str(tmp_path / "empty"))
    shutil.rmtree(tmp_path / "empty")
