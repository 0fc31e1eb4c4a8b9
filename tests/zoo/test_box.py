"""The box: what it stores, that it loads as fp32 without a network, and what is refused."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_box import SIZES, make_box, small_run, some_photos

import smalti
from smalti.data import load_image, open_images, save_image
from smalti.evaluation.inputs import target_size
from smalti.jobs.decode import DecodeConfig, decode
from smalti.jobs.encode import EncodeConfig, encode
from smalti.training import read_settings
from smalti.zoo import BOXED, DEFAULT, MODELS, box, kind_of, load, open_tokenizer


def test_its_names_are_models_that_build_makes_fresh() -> None:
    assert set(SIZES) == set(BOXED) <= set(MODELS)
    assert DEFAULT in BOXED


@pytest.mark.parametrize("name", BOXED)
def test_numbers_are_stored_in_half_precision_and_loaded_as_fp32(name: str, box: Path) -> None:
    stored, full = (load_file(folder / "model.safetensors") for folder in (box / name, box / f"{name}-run"))
    loaded = load(name).state_dict()
    assert stored.keys() == full.keys() == loaded.keys()
    for key, tensor in full.items():
        assert stored[key].dtype == (torch.float16 if tensor.is_floating_point() else tensor.dtype)
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], stored[key].to(tensor.dtype))
        torch.testing.assert_close(loaded[key], tensor, rtol=2**-11, atol=2**-24)


@pytest.mark.parametrize("name", BOXED)
def test_a_name_loads_without_a_network(name: str, box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    model = smalti.load(name)
    assert not model.training
    assert model.fingerprint == load(box / name).fingerprint == open_tokenizer(name).fingerprint
    assert target_size("trained", [name]) == (16, 16)


@pytest.mark.parametrize("name", BOXED)
def test_the_shipped_weights_and_codec_code_a_photograph(name: str, tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="the embedded photographs are in the wheels of smalti[demo]")
    if not box.filled(name):
        pytest.skip(f"this installation has no weights of {name}")
    photograph, tokens = open_images("embedded:test").load(0)[100:196, 100:228], tmp_path / "tokens"
    save_image(tmp_path / "photo.png", photograph)
    encode(EncodeConfig(name, (str(tmp_path / "photo.png"),), tokens, device="cpu"))
    decode(DecodeConfig(name, tokens, tmp_path / "again.png", device="cpu"))
    error = load_image(tmp_path / "again.png", 3) - photograph.astype(float)
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 20


def test_it_says_how_it_was_trained_and_nothing_of_the_machine(box: Path) -> None:
    settings, run = read_settings(box / "photo-f8"), read_settings(box / "photo-f8-run")
    assert settings is not None
    assert run is not None
    assert settings.items() <= run.items()
    assert {"data", "out", "validation"}.isdisjoint(settings)
    assert settings["loss_weights"] == {"l2": 1.0}


def test_an_empty_box_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "BOX", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^photo-f8: this installation has no weights of it .*$"):
        load("photo-f8")


def test_a_folder_of_the_same_name_is_reached_by_its_path(
    box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = smalti.PatchVQVAE(8, 4, {"widths": [8], "blocks": [1]})
    own.save_pretrained("photo-f8")
    assert load("photo-f8").fingerprint == load(box / "photo-f8").fingerprint
    assert load("./photo-f8").fingerprint == load(Path("photo-f8")).fingerprint == own.fingerprint


def test_what_is_a_tokenizer(box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    some_photos(tmp_path / "photos")
    save_file({"encoder.weight": torch.zeros(1)}, "other.safetensors")
    names = ("photo-f8", str(box / "photo-f8"), "other.safetensors")
    assert [kind_of(name) for name in names] == ["boxed", "saved", "published"]
    assert [kind_of(name) for name in ("photos", "photos/0.png", "nowhere", "user/name")] == [None] * 4


# ---- making it -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    some_photos(tmp_path / "photos")
    return small_run("photo-f8", tmp_path / "run")


def test_a_weight_that_half_precision_cannot_hold_is_refused(run: Path, tmp_path: Path) -> None:
    weights = load_file(run / "model.safetensors")
    name = next(name for name, tensor in weights.items() if name.startswith("decoder") and tensor.is_floating_point())
    weights[name][0] = 1e5  # fp16 ends at 65504
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match=rf"{name}: got numbers up to 100000, half precision ends at 65504"):
        make_box(run, "--box", tmp_path / "box", "--images", tmp_path / "photos")
    assert list((tmp_path / "box").iterdir()) == []


def test_a_run_of_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    settings = (run / "train.yaml").read_text()
    (run / "train.yaml").write_text(settings.replace("photo-f8", "simple"))
    with pytest.raises(SystemExit, match="got a run of 'simple', expected one of photo-f8, photo-pyramid"):
        make_box(run, "--box", tmp_path / "box")


def test_the_share_of_equal_tokens_is_printed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """6 pictures of 24 x 20 pixels have 6 x 5 tokens each at stride 4."""
    make_box(run, "--box", tmp_path / "box", "--images", tmp_path / "photos")
    told, folder = capsys.readouterr().out.splitlines()
    share, count = float(told.partition("%")[0]), int(told.split()[2])
    assert count == 6 * 6 * 5
    assert 97 <= share <= 100
    assert f"{tmp_path}/box/photo-f8: " in folder
