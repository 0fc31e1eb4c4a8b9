"""MNIST's files: written here byte by byte, read back, and refused when they are not what they say."""

import gzip
import struct

import numpy as np
import pytest

from smalti.data import idx
from smalti.data.idx import FASHION_MNIST_CLASSES, IdxImages, is_idx_folder, read_idx

IMAGES = {
    "train": np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8),
    "t10k": np.random.default_rng(1).integers(0, 256, (3, 5, 4), dtype=np.uint8),
}
LABELS = {"train": np.array([5, 0, 9, 1, 1, 2], np.uint8), "t10k": np.array([9, 8, 7], np.uint8)}


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()


def write_folder(folder, joint="-", gz=True, splits=("train", "t10k")):
    folder.mkdir(exist_ok=True)
    for split in splits:
        for part, values in (("images", IMAGES[split]), ("labels", LABELS[split])):
            name = f"{split}-{part}{joint}idx{values.ndim}-ubyte" + (".gz" if gz else "")
            (folder / name).write_bytes(gzip.compress(idx_bytes(values)) if gz else idx_bytes(values))
    return folder


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("joint", ["-", "."])
def test_both_splits_with_labels_in_every_naming(tmp_path, gz, joint):
    folder = write_folder(tmp_path, joint, gz)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        source = IdxImages(folder, split, channels=1)
        assert len(source) == len(IMAGES[prefix])
        for index, (image, label) in enumerate(zip(IMAGES[prefix], LABELS[prefix], strict=True)):
            np.testing.assert_array_equal(source.load(index)[:, :, 0], image)
            assert source.label(index) == label
        np.testing.assert_array_equal(IdxImages(folder, split).load(2), np.stack([IMAGES[prefix][2]] * 3, 2))
        assert source.key(2) == f"{split}/00002"


def test_one_split_alone_is_enough(tmp_path):
    assert not is_idx_folder(tmp_path)
    write_folder(tmp_path, splits=("t10k",))
    assert is_idx_folder(tmp_path)
    assert len(IdxImages(tmp_path, "test")) == 3
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte \(or \.gz\) here"):
        IdxImages(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing, expected the IDX magic 00000803"),
        (b"\x89PNG\r\n", "begins with 89504e47"),
        (idx_bytes(LABELS["train"]), "begins with 00000801"),
        (idx_bytes(IMAGES["train"])[:10], "ends inside its header"),
        (idx_bytes(IMAGES["train"])[:-1], r"got 119 values, expected the shape \(6, 5, 4\)"),
        (idx_bytes(IMAGES["train"]) + b"x", r"got 121 values, expected the shape \(6, 5, 4\)"),
        (struct.pack(">4I", 0x803, 2**31, 2**31, 2**31), "got 0 values"),
    ],
)
@pytest.mark.parametrize("gz", [True, False])
def test_damaged_files_are_refused(tmp_path, content, message, gz):
    folder = write_folder(tmp_path, gz=gz)
    name = folder / ("train-images-idx3-ubyte" + (".gz" if gz else ""))
    name.write_bytes(gzip.compress(content) if gz else content)
    with pytest.raises(ValueError, match=message):
        IdxImages(folder)
    assert len(IdxImages(folder, "test")) == 3


def test_damaged_gzip_is_refused(tmp_path):
    whole = gzip.compress(idx_bytes(IMAGES["train"]))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b"not gzip"):
        (tmp_path / "a.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged gzip data"):
            read_idx(tmp_path / "a.gz", axes=3)


def test_files_that_do_not_belong_together(tmp_path):
    folder = write_folder(tmp_path, gz=False)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS["t10k"]))
    with pytest.raises(ValueError, match="got 6 images but 3 labels in split train"):
        IdxImages(folder)
    for part, empty in (("images", np.zeros((0, 5, 4), np.uint8)), ("labels", np.zeros(0, np.uint8))):
        (folder / f"train-{part}-idx{empty.ndim}-ubyte").write_bytes(idx_bytes(empty))
    with pytest.raises(ValueError, match="no image in split train"):
        IdxImages(folder)
    with pytest.raises(ValueError, match=r"label 9, expected 0\.\.\.8"):
        IdxImages(folder, "test", class_names=FASHION_MNIST_CLASSES[:9])
    with pytest.raises(ValueError, match="split: got 'valid', expected one of train, test"):
        IdxImages(folder, "valid")
    with pytest.raises(ValueError, match="channels: got 2"):
        IdxImages(folder, "test", channels=2)


def test_debians_package_where_it_is_installed():
    if not idx.FASHION_MNIST_FOLDER.is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    source = IdxImages(idx.FASHION_MNIST_FOLDER, "test", 1, FASHION_MNIST_CLASSES)
    assert len(source) == 10000
    assert source.load(0).shape == (28, 28, 1)
    assert np.bincount([source.label(i) for i in range(10000)]).tolist() == [1000] * 10
