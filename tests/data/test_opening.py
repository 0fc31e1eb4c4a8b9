"""The strings that people type, and what they get."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.data import opening
from smalti.data.embedded import EmbeddedPhotographs
from smalti.data.files import ImageFiles
from smalti.data.idx import IdxImages
from smalti.data.opening import open_images


def write_idx(folder, prefix, count):
    folder.mkdir(exist_ok=True)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 2, 3) + bytes(count * 6))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + bytes(count))


def write_picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)
    return path


@pytest.mark.parametrize(("data", "first"), [("embedded", "skimage/data/camera.png"), ("embedded:train", None)])
def test_embedded_is_the_training_split(data, first):
    source = open_images(data)
    assert isinstance(source, EmbeddedPhotographs)
    assert source.key(0) == (first or open_images("embedded").key(0))


def test_embedded_test_is_the_held_out_pair():
    source = open_images("embedded:test", channels=1)
    assert [Path(source.key(i)).stem for i in range(len(source))] == ["astronaut", "flower"]
    assert source.load(0).shape == (512, 512, 1)


def test_folder_and_file(tmp_path):
    picture = write_picture(tmp_path / "a" / "b.png")
    for data in (tmp_path, str(tmp_path), picture, str(picture)):
        source = open_images(data, channels=1)
        assert isinstance(source, ImageFiles)
        assert source.load(0).shape == (3, 4, 1)
    limited = open_images(tmp_path, max_pixels=11)
    with pytest.raises(ValueError, match="more than max_pixels = 11"):
        limited.load(0)


def test_idx_folders_have_splits(tmp_path):
    write_idx(tmp_path / "digits", "train", 5)
    write_idx(tmp_path / "digits", "t10k", 2)
    counts = {end: len(open_images(f"{tmp_path / 'digits'}{end}")) for end in ("", ":train", ":test")}
    assert counts == {"": 5, ":train": 5, ":test": 2}
    assert isinstance(open_images(tmp_path / "digits"), IdxImages)
    with pytest.raises(ValueError, match="split: got 'valid', expected one of train, test"):
        open_images(f"{tmp_path / 'digits'}:valid")


def test_fashion_mnist_from_the_packages_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "FASHION_MNIST_FOLDER", tmp_path / "fashion")
    with pytest.raises(FileNotFoundError, match=r"fashion-mnist: .*install Debian's package dataset-fashion-mnist"):
        open_images("fashion-mnist")
    write_idx(tmp_path / "fashion", "train", 5)
    write_idx(tmp_path / "fashion", "t10k", 2)
    assert (len(open_images("fashion-mnist")), len(open_images("fashion-mnist:test"))) == (5, 2)
    assert open_images("fashion-mnist", channels=1).load(0).shape == (2, 3, 1)
    assert open_images("fashion-mnist").class_names[9] == "Ankle boot"
    np.testing.assert_array_equal(open_images("fashion-mnist").load(1), 0)


def test_a_folder_may_be_called_like_a_name_or_contain_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_picture(Path("embedded") / "x.png")
    write_picture(Path("a:test") / "y.png")
    assert isinstance(open_images("embedded"), EmbeddedPhotographs)
    assert isinstance(open_images(Path("embedded")), ImageFiles)
    assert open_images("./embedded").key(0) == "x.png"
    assert open_images("a:test").key(0) == "y.png"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("embedded:valid", "embedded:valid: split: got 'valid', expected one of train, test"),
        ("fashion-mnist:all", "fashion-mnist:all: split: got 'all'"),
        ("photos:test", "photos: split: got 'test', expected one that file names contain: none"),
        ("photos/x.png:test", "photos/x.png:test: files that are named themselves have no split, only folders have"),
    ],
)
def test_unknown_splits(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    write_picture(Path("photos") / "x.png")
    with pytest.raises(ValueError, match=message):
        open_images(data)


def test_a_folder_in_imagenets_layout(tmp_path):
    for name in ("train/cat/a.png", "train/dog/b.png", "val/cat/c.png"):
        write_picture(tmp_path / name)
    for data, first in ((tmp_path, "cat/a.png"), (f"{tmp_path}:train", "cat/a.png"), (f"{tmp_path}:val", "cat/c.png")):
        assert (open_images(data).key(0), open_images(data).class_names) == (first, ("cat", "dog"))


def test_every_source_survives_the_way_into_a_worker(tmp_path):
    write_picture(tmp_path / "photos" / "a.png")
    write_idx(tmp_path / "digits", "train", 2)
    for data in ("embedded:test", tmp_path / "photos", tmp_path / "digits"):
        source = open_images(data)
        copy = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(copy.load(0), source.load(0))
        assert (len(copy), copy.key(0), copy.label(0)) == (len(source), source.key(0), source.label(0))


def test_nothing_there(tmp_path):
    for data in (tmp_path / "absent", f"{tmp_path}/absent:test"):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            open_images(data)
    with pytest.raises(ValueError, match="no image in this folder"):
        open_images(tmp_path)


@pytest.mark.parametrize("data", ["embedded", "fashion"])
def test_bad_channels_are_refused_at_once(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    write_idx(Path("fashion"), "train", 1)
    with pytest.raises(ValueError, match=r"channels: got 2, expected 1 .* or 3"):
        open_images(data, channels=2)
