"""Saved and loaded: bit-equal, silent, strict, offline; and the fingerprint that token files carry."""

import copy
import json
import logging
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import smalti.zoo
from smalti.quantizers import EMAVectorQuantizer, KMeansInit, MultiScaleQuantizer, Quantizer, VectorQuantizer
from smalti.tokenizers import SimpleVQVAE, Tokenizer

MAKERS = {
    "default": lambda: SimpleVQVAE(16, 6, 16),
    "multi-scale": lambda: SimpleVQVAE(16, 6, 16, patch_nums=(1, 2, 4), activation="gelu", norm="batch"),
    "own quantizer": lambda: SimpleVQVAE(
        16, 6, 16, num_stages=1, image_channels=1, quantizer=VectorQuantizer(16, 6, 0.5, metric="cosine")
    ),
}
EVERY = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def used(tokenizer: Tokenizer) -> Tokenizer:
    """After a few training passes, so that every buffer has left its start."""
    for _ in range(3):
        output = tokenizer.train()(torch.rand(2, tokenizer.image_channels, 16, 16) * 2 - 1)
        output.reconstruction.sum().backward()
    return tokenizer.eval()


@EVERY
def test_a_loaded_model_is_bit_equal(
    make: Any, tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    model = used(make())
    with caplog.at_level(logging.INFO):
        model.save_pretrained(tmp_path / "model")
        loaded = SimpleVQVAE.from_pretrained(tmp_path / "model")
        again = smalti.zoo.load(str(tmp_path / "model"))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    image = torch.rand(2, model.image_channels, 13, 18) * 2 - 1
    for other in (loaded, again):
        assert type(other) is SimpleVQVAE
        assert not other.training
        assert other.config() == model.config()
        assert set(other.state_dict()) == set(model.state_dict())
        for name, value in model.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
        assert other.fingerprint == model.fingerprint
        assert torch.equal(other(image).reconstruction, model(image).reconstruction)
        assert torch.equal(other.decode(model.encode(image)), model.decode(model.encode(image)))


@pytest.mark.parametrize("part", ["quantizer", "quantizer.quantizers.0"])
def test_what_is_frozen_stays_frozen(part: str, tmp_path: Path) -> None:
    scales = MultiScaleQuantizer(16, 6, (1, 2, 4), quantizer=EMAVectorQuantizer(16, 6))
    model = used(SimpleVQVAE(16, 6, 16, quantizer=scales))
    free, before = model.training_state(), model.fingerprint
    assert free == {}
    model.get_submodule(part).freeze()
    assert model.fingerprint == before  # its tokens mean what they meant
    model.save_pretrained(tmp_path)
    loaded = SimpleVQVAE.from_pretrained(tmp_path)
    assert loaded.fingerprint == before
    gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == gradients
    held, codes = loaded.get_submodule(part), loaded.quantizer.get_codebook().clone()
    used(loaded)
    assert torch.equal(loaded.quantizer.get_codebook(), codes)
    held.unfreeze()
    assert loaded.training_state() == free
    assert not torch.equal(used(loaded).quantizer.get_codebook(), codes)


@EVERY
def test_the_folder_holds_plain_json_and_safetensors(make: Any, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["type"] == "SimpleVQVAE"
    assert {name: value for name, value in config.items() if name != "type"} == json.loads(json.dumps(model.config()))
    weights = load_file(tmp_path / "model.safetensors")
    assert {"encoder.layers.0.weight", "decoder.layers.0.weight"} <= set(weights)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_a_missing_or_surplus_weight_is_an_error(tmp_path: Path) -> None:
    MAKERS["default"]().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    name = "encoder.layers.0.bias"
    for changed in (
        {n: w for n, w in weights.items() if n != name},
        {**weights, "surplus.weight": torch.zeros(2)},
        {**weights, name: torch.zeros(3)},
    ):
        save_file(changed, path)
        with pytest.raises(ValueError, match=r"bias|surplus"):
            SimpleVQVAE.from_pretrained(tmp_path)


@pytest.mark.parametrize("harm", ["half", "four bytes", "empty", "foreign", "flipped header", "flipped bit"])
@pytest.mark.parametrize("reader", [SimpleVQVAE.from_pretrained, smalti.zoo.load])
def test_a_damaged_weights_file_is_a_one_line_error(tmp_path: Path, harm: str, reader: Any) -> None:
    MAKERS["default"]().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    good = path.read_bytes()
    path.write_bytes(
        {
            "half": good[: len(good) // 2],
            "four bytes": good[:4],
            "empty": b"",
            "foreign": b"\x89PNG\r\n\x1a\n" + bytes(100),
            "flipped header": good[:9] + bytes([good[9] ^ 0xFF]) + good[10:],
            "flipped bit": good[:-1] + bytes([good[-1] ^ 1]),
        }[harm]
    )
    with pytest.raises(ValueError, match=r"model\.safetensors") as caught:
        reader(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: [1], "config"),
        (lambda c: {**c, "hidden_dim": 32}, "hidden_dim|fit|size"),
        (lambda c: {**c, "hidden_dim": "16"}, r"config\.json"),
        (lambda c: {**c, "vocab_size": 17}, "17"),
        (lambda c: {**c, "activation": "tanh"}, "tanh"),
        (lambda c: {**c, "quantizer": 3}, "quantizer"),
        (lambda c: {**c, "quantizer": {**c["quantizer"], "type": "Magic"}}, "Magic"),
        (lambda c: {**c, "quantizer": {**c["quantizer"], "surprise": 1}}, "surprise"),
        (lambda c: {**c, "of_a_later_version": 17}, "of_a_later_version"),
        (lambda c: {**c, "frozen": True}, "frozen"),
        (lambda c: {**c, "frozen": ["encoder"]}, "frozen"),
        (lambda c: {**c, "frozen": [[]]}, "frozen"),
        (lambda c: {**c, "type": "AnotherModel"}, "AnotherModel"),
        (lambda c: {n: v for n, v in c.items() if n != "type"}, "fits no family"),
    ],
)
def test_a_config_that_describes_no_model_is_a_one_line_error(tmp_path: Path, change: Any, named: str) -> None:
    MAKERS["default"]().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=named) as caught:
        smalti.zoo.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for missing in (tmp_path / "no" / "such" / "folder", tmp_path):
        with pytest.raises(FileNotFoundError, match=missing.name):
            smalti.zoo.load(missing)
    MAKERS["default"]().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        smalti.zoo.load(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        SimpleVQVAE.from_pretrained(tmp_path / "model")


class Tiny(Tokenizer):
    """Somebody else's tokenizer, to see that saving needs nothing of SimpleVQVAE."""

    def __init__(self, width: int, quantizer: Quantizer):
        super().__init__()
        self.encoder = nn.Conv2d(3, width, 2, stride=2)
        self.quantizer = quantizer
        self.decoder = nn.ConvTranspose2d(width, 3, 2, stride=2)
        self.stride, self.image_channels = 2, 3

    def config(self) -> dict[str, Any]:
        return {"width": self.encoder.out_channels, "quantizer": self.quantizer.config()}


def test_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    model = used(Tiny(5, EMAVectorQuantizer(8, 5, init=KMeansInit(1))))
    model.save_pretrained(tmp_path)
    loaded = Tiny.from_pretrained(tmp_path)
    image = torch.randint(0, 256, (1, 3, 7, 9), dtype=torch.uint8)
    assert torch.equal(loaded.decode(loaded.encode(image)), model.decode(model.encode(image)))
    assert loaded.fingerprint == model.fingerprint


def test_a_tokenizer_that_does_not_keep_an_argument_cannot_be_saved(tmp_path: Path) -> None:
    class Forgetful(Tiny):
        def __init__(self, width: int, quantizer: Quantizer, forgotten: int):
            super().__init__(width, quantizer)
            self.width = width

        config = Tokenizer.config

    with pytest.raises(AttributeError, match="forgotten"):
        Forgetful(5, EMAVectorQuantizer(8, 5), 1).save_pretrained(tmp_path)


# ---- fingerprint -----------------------------------------------------------------------------------------------------


@EVERY
def test_the_fingerprint_changes_with_the_last_bit_of_any_weight(make: Any) -> None:
    model = used(make())
    prints = {model.fingerprint}
    assert len(model.fingerprint) == 64
    assert set(model.fingerprint) <= set("0123456789abcdef")
    state = model.state_dict()
    for count, tensor in enumerate(state.values(), start=2):
        flat = tensor.view(-1)
        keep = flat[-1].clone()
        flat[-1] = torch.nextafter(keep, keep + 1) if tensor.is_floating_point() else keep + 1
        prints.add(model.fingerprint)
        assert len(prints) == count
        flat[-1] = keep
    assert model.fingerprint in prints
    assert len(prints) == len(state) + 1


def test_the_fingerprint_depends_on_nothing_else() -> None:
    model = used(MAKERS["default"]())
    before = model.fingerprint
    assert copy.deepcopy(model).fingerprint == before
    assert model.train().fingerprint == before
    model.encode(torch.rand(1, 3, 9, 9))
    torch.manual_seed(99)
    assert model.eval().fingerprint == before
    model.to(memory_format=torch.channels_last)
    assert model.fingerprint == before


def test_the_fingerprint_knows_the_configuration() -> None:
    """Equal weights, another meaning: another activation, another metric."""
    a, b = SimpleVQVAE(16, 6, 16, activation="relu"), SimpleVQVAE(16, 6, 16, activation="elu")
    b.load_state_dict(a.state_dict())
    assert a.fingerprint != b.fingerprint


def test_weights_that_cannot_be_written_are_an_error_of_the_system(tmp_path):
    """A limit on a file's size fails like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(OSError, match="cannot write the weights"):
            SimpleVQVAE(8, 4, 4).save_pretrained(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
