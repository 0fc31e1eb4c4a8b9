"""Folders as people have them: nested, mixed, linked, and with broken files in between."""

import os
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from smalti.data.files import ImageFiles
from smalti.data.source import CachedSource, UnreadableImageError


def write(path, value=0, size=(4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def keys(source):
    return [source.key(index) for index in range(len(source))]


def test_recursion_order_suffixes_and_hidden_names(tmp_path):
    for name in ["b/2.png", "b/10.PNG", "a/deep/er/x.jpeg", "Z.tif", "a.webp", "c.TIFF", "d.bmp", "e.JPG"]:
        write(tmp_path / name)
    for name in [".hidden.png", ".git/a.png", "b/.thumbs/a.png"]:
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.png").mkdir()
    expected = ["Z.tif", "a.webp", "a/deep/er/x.jpeg", "b/10.PNG", "b/2.png", "c.TIFF", "d.bmp", "e.JPG"]
    assert keys(ImageFiles(tmp_path)) == expected


def test_labels_are_the_sorted_sub_folders_with_an_image(tmp_path):
    for name in ["dog/1.png", "cat/1.png", "cat/sub/2.png", "root.png"]:
        write(tmp_path / name)
    for name in ("bird", "__MACOSX", "lost+found", "dog/empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "__MACOSX" / "._1.png").touch()
    (tmp_path / "bird" / "notes.txt").touch()
    source = ImageFiles(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert [(source.key(i), source.label(i)) for i in range(4)] == [
        ("cat/1.png", 0),
        ("cat/sub/2.png", 0),
        ("dog/1.png", 1),
        ("root.png", None),
    ]


def test_folders_that_are_called_as_splits_are_splits(tmp_path):
    for name in ["train/cat/1.png", "train/dog/2.png", "val/dog/3.png", "val/newt/4.png", "Test/5.png"]:
        write(tmp_path / name)
    (tmp_path / "notes").mkdir()
    for split, found in (
        ("", ["cat/1.png", "dog/2.png"]),
        ("train", ["cat/1.png", "dog/2.png"]),
        ("val", ["dog/3.png", "newt/4.png"]),
        ("validation", ["dog/3.png", "newt/4.png"]),
        ("test", ["5.png"]),
    ):
        source = ImageFiles(tmp_path, split=split)
        assert keys(source) == found
        assert source.class_names == ("cat", "dog", "newt")  # one class has one number in all splits
        for i, key in enumerate(found):
            name = key.partition("/")[0]
            assert source.label(i) == (None if name == key else source.class_names.index(name))
        assert source.load(0).shape == (3, 4, 3)
    with pytest.raises(
        ValueError, match="split: got 'all', expected one that file names contain: test, train, validation"
    ):
        ImageFiles(tmp_path, split="all")
    write(tmp_path / "car" / "6.png")  # now "train" is a class like "car"
    assert ImageFiles(tmp_path).class_names == ("Test", "car", "train", "val")


def test_each_key_carries_its_own_pixels(tmp_path):
    for value in (3, 1, 2):
        write(tmp_path / f"{value}.png", value)
    source = ImageFiles(tmp_path)
    assert [source.load(i)[0, 0, 0] for i in range(3)] == [1, 2, 3]
    assert ImageFiles(tmp_path, channels=1).load(0).shape == (3, 4, 1)


def test_one_file(tmp_path):
    write(tmp_path / "sub" / "a.png", 7)
    source = ImageFiles(tmp_path / "sub" / "a.png")
    assert keys(source) == ["a.png"]
    assert source.label(0) is None
    assert source.load(0)[0, 0, 0] == 7


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "elsewhere" / "1.png")
    root = tmp_path / "root"
    write(root / "a" / "2.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    assert keys(ImageFiles(root)) == ["a/2.png", "linked/1.png"]


def test_a_broken_link_is_named_and_a_pipe_does_not_hang(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "c.png")
    source = ImageFiles(tmp_path)
    assert keys(source) == ["a.png", "b.png"]
    with pytest.raises(UnreadableImageError, match=r"b\.png: cannot be opened \(No such file"):
        source.load(1)


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"\xff\xe4.png"))
    source = ImageFiles(tmp_path)
    assert source.key(0).encode() == rb"\xff\xe4.png"
    assert source.load(0).shape == (3, 4, 3)


def test_what_cannot_be_read_is_recorded_with_its_reason(tmp_path):
    write(tmp_path / "good.png")
    write(tmp_path / "sub" / "huge.png", size=(40, 30))
    (tmp_path / "empty.jpg").touch()
    source = ImageFiles(tmp_path, max_pixels=1000)
    assert source.unreadable_summary() == ""
    for index in range(len(source)):
        with suppress(UnreadableImageError):
            source.load(index)
    assert list(source.unreadable) == ["empty.jpg", "sub/huge.png"]
    assert "raise max_pixels" in source.unreadable["sub/huge.png"]
    summary = source.unreadable_summary()
    assert summary.startswith(
        "skipped 2 of 3 images: empty.jpg (the file is empty), sub/huge.png (40 x 30 = 1200 pixels"
    )
    assert "\n" not in summary


def test_a_long_summary_ends(tmp_path):
    for number in range(25):
        (tmp_path / f"{number:02d}.png").touch()
    source = ImageFiles(tmp_path)
    for index in range(25):
        with pytest.raises(UnreadableImageError):
            source.load(index)
    assert source.unreadable_summary().endswith("19.png (the file is empty), and 5 more")


def test_refusals_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such file or folder"):
        ImageFiles(tmp_path / "absent")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(
        ValueError,
        match=r"no image in this folder or its sub-folders \(PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF, HEIC, JPEG XL\)",
    ):
        ImageFiles(tmp_path)
    with pytest.raises(ValueError, match=r"a\.txt: not an image file, expected one of the suffixes \.avif"):
        ImageFiles(tmp_path / "a.txt")
    write(tmp_path / "a.png")
    with pytest.raises(ValueError, match="channels: got 4"):
        ImageFiles(tmp_path, channels=4)
    with pytest.raises(ValueError, match="max_pixels: got 0"):
        ImageFiles(tmp_path, max_pixels=0)


def test_the_cache_decodes_once_keeps_its_budget_and_changes_nothing(tmp_path):
    for value in range(5):
        write(tmp_path / f"{value}.png", value)  # 12 pixels, in memory of 4 bytes each
    (tmp_path / "5.png").touch()
    source, reads = ImageFiles(tmp_path), []
    read_file = source._read
    source._read = lambda index, enough: (reads.append(index), read_file(index, enough))[1]
    cached = CachedSource(source, max_bytes=100)
    for _ in range(3):
        for index in range(5):
            np.testing.assert_array_equal(cached.load(index), np.full((3, 4, 3), index))
    assert sorted(reads) == [0, 1, *[2] * 3, *[3] * 3, *[4] * 3]
    with pytest.raises(UnreadableImageError):
        cached.load(5)
    assert list(source.unreadable) == ["5.png"] == list(cached.unreadable)
    assert cached.__getstate__()["_kept"] == {}
    assert (len(cached), cached.key(2), cached.label(2)) == (6, "2.png", None)
