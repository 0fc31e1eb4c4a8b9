"""The same picture files stored in six ways are the same images: a folder, tar shards, Parquet, Arrow, hub, stream.

The folder is the oracle. It holds what people have: colour, grey, RGBA, CMYK, and one damaged file. The tar shards are
written by WebDataset's own library, the tables by pyarrow and `datasets`.
"""

import json
import os
import pickle
import tarfile
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
import webdataset
from PIL import Image
from pyarrow import parquet
from webdataset import tariterators

from smalti.data import (
    HubImages,
    HubStream,
    ImageFiles,
    ParquetImages,
    SourceVanishedError,
    TarImages,
    TransformConfig,
    open_images,
    ordered_batches,
    training_batches,
)
from smalti.data import hub as hub_module
from smalti.data import parquet as parquet_module
from smalti.data.tar import expand_braces

AUGMENT = TransformConfig(size=8, crop="random", zoom=2.0, flip=True)
KINDS = ("tar", "parquet", "arrow", "disk", "hub", "stream")
CLASSES = ("cat", "dog", "newt")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    """Eleven files in three classes, one of them damaged."""
    generator = np.random.default_rng(0)
    root = tmp_path / "photos"
    for number in range(11):
        path = root / CLASSES[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(generator.integers(0, 256, (10 + number, 20, 3), dtype=np.uint8))
        if number == 4:
            path = path.with_suffix(".jpg")
        picture = picture.convert({1: "L", 2: "RGBA", 4: "CMYK"}.get(number, "RGB"))
        picture.save(path)
        if number == 6:
            path.write_bytes(path.read_bytes()[:70])
    return root


def rows_of(folder):
    """(key, bytes, label, caption) of each file, in the order of the folder's keys."""
    source = ImageFiles(folder)
    keys = [source.key(i) for i in range(len(source))]
    return [(key, (folder / key).read_bytes(), source.label(i), f"caption of {key}") for i, key in enumerate(keys)]


def as_dataset(rows):
    features = datasets.Features(
        picture=datasets.Image(), kind=datasets.ClassLabel(names=list(CLASSES)), text=datasets.Value("string")
    )
    columns = {
        "picture": [{"bytes": data, "path": None} for _, data, _, _ in rows],
        "kind": [label for _, _, label, _ in rows],
        "text": [caption for _, _, _, caption in rows],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def store(kind, rows, root):
    """Write the rows in one of the ways, and open them."""
    root.mkdir()
    if kind == "tar":
        with webdataset.ShardWriter(f"{root}/shard-%06d.tar", maxcount=4, verbose=0) as writer:
            for number, (key, data, label, caption) in enumerate(rows):
                words = {"txt": caption} if number % 2 else {"json": {"text": caption, "id": 3}}
                extension = key.rpartition(".")[2]
                writer.write({"__key__": f"{number:04d}", extension: data, "cls": label} | words)
        return open_images(f"{root}/shard-{{000000..000002}}.tar")
    if kind == "parquet":
        for number, part in enumerate((rows[:7], rows[7:])):
            as_dataset(part).to_parquet(root / f"train-{number:05d}-of-00002.parquet", batch_size=3)
        return open_images(root)
    as_dataset(rows).save_to_disk(root / "saved")
    if kind == "disk":
        return open_images(root / "saved")
    if kind == "arrow":
        return open_images(root / "saved" / "data-00000-of-00001.arrow")
    as_dataset(rows).to_parquet(root / "train.parquet", batch_size=3)
    return open_images(f"hf://{root}" + "?streaming=true" * (kind == "stream"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_storing_gives_the_images_of_the_folder(folder, tmp_path, kind):
    rows, here = rows_of(folder), ImageFiles(folder)
    there = store(kind, rows, tmp_path / "stored")
    assert len(there) == len(here) == 11
    keys = [there.key(i) for i in range(11)]
    assert len(set(keys)) == 11
    assert there.class_names == (() if kind == "tar" else CLASSES)
    for i in (*range(11), 3, 0):  # backwards, too
        if here.key(i) == "cat/06.png":
            with pytest.raises(ValueError, match=f"{keys[i]}: cannot be decoded"):
                there.load(i)
        else:
            np.testing.assert_array_equal(there.load(i), here.load(i))
        assert there.label(i) == here.label(i)
        assert there.caption(i) == rows[i][3]
    assert list(there.unreadable) == [keys[2]]
    copy = pickle.loads(pickle.dumps(there))
    np.testing.assert_array_equal(copy.load(8), here.load(8))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_exact_from_every_way_of_storing(folder, tmp_path, kind):
    source = store(kind, rows_of(folder), tmp_path / "stored")
    here, there = ImageFiles(folder), source
    for one, other in zip(ordered_batches(here, AUGMENT, 4), ordered_batches(there, AUGMENT, 4), strict=True):
        assert torch.equal(one.image, other.image)
        assert one.labels == other.labels
        assert other.captions == tuple(f"caption of {key}" for key in one.keys)
    (picked,) = ordered_batches(there, AUGMENT, 4, indices=range(5, 8))
    assert picked.keys == tuple(there.key(i) for i in range(5, 8))

    for epoch in islice(training_batches(source, AUGMENT, 11, seed=3), 2):
        assert sorted((*epoch.keys, *epoch.unreadable)) == sorted(source.key(i) for i in range(11))
        assert epoch.keys != tuple(sorted(epoch.keys))
    whole = islice(training_batches(source, AUGMENT, 4, seed=3), 2, 5)
    workers = 1 if kind == "stream" else 0  # its bytes travel from this process to the workers
    parts = [  # two processes, resumed
        training_batches(source, AUGMENT, 2, 3, start_batch=2, workers=workers, rank=rank, world=2) for rank in (0, 1)
    ]
    for expected, one, other in zip(whole, *parts, strict=False):
        assert one.keys + other.keys == expected.keys
        assert torch.equal(torch.cat([one.image, other.image]), expected.image)


# ---- tar shards ------------------------------------------------------------------------------------------------------


def tar_of(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in members:
            writer.write(sample)
    return path


def png(value=0):
    picture = Image.new("L", (3, 2), value)
    path = Path("one.png")
    picture.save(path)
    return path.read_bytes()


def test_a_tar_is_read_as_webdataset_reads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = [
        {"__key__": "a/x", "seg.png": png(1), "png": png(2), "cls": b"7"},
        {"__key__": "a/y", "txt": b"no picture"},
        {"__key__": "b/x", "jpg": png(3), "json": json.dumps({"caption": "both", "text": "no"}).encode()},
        {"__key__": "b/z", "PNG": png(4), "txt": b" spaced \n"},
    ]
    shard = tar_of(tmp_path / "deep" / "s.tar", members)
    source = TarImages([shard])
    with shard.open("rb") as file:
        members = ({**member, "__url__": str(shard)} for member in tariterators.tar_file_iterator(file))
        theirs = [sample for sample in tariterators.group_by_keys(members) if {"png", "jpg"} & set(sample)]
    assert [source.key(i) for i in range(3)] == [f"s/{sample['__key__']}" for sample in theirs]
    assert [source.label(i) for i in range(3)] == [7, None, None]
    assert [source.caption(i) for i in range(3)] == [None, "both", "spaced"]
    assert [int(source.load(i)[0, 0, 0]) for i in range(3)] == [2, 3, 4]


def test_shards_in_folders_have_keys_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one/s.tar", "two/s.tar"):
        tar_of(tmp_path / "set" / name, [{"__key__": "0", "png": png()}])
    for data in ("set", "set/*/s.tar", "set/{one,two}/s.tar", tmp_path / "set"):
        source = open_images(data)
        assert isinstance(source, TarImages)
        assert [source.key(i) for i in range(2)] == ["one/s/0", "two/s/0"]


def test_damaged_tar_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shard = tar_of(tmp_path / "s.tar", [{"__key__": str(i), "png": png(i)} for i in range(3)])
    whole = shard.read_bytes()
    source = TarImages([shard])
    shard.write_bytes(whole[: whole.index(b"\x89PNG") + 10])  # cut off while we use it
    with pytest.raises(ValueError, match="s/0: the shard ends inside the picture"):
        source.load(0)
    with pytest.raises(ValueError, match=r"s\.tar: cannot be read as an uncompressed tar file"):
        TarImages([shard])
    shard.write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(ValueError, match=r"s\.tar: cannot be read as an uncompressed tar file"):
        open_images("s.tar")
    tar_of(shard, [{"__key__": "0", "txt": b"x"}])
    with pytest.raises(ValueError, match=r"s\.tar: no image in this shard"):
        open_images("s.tar")
    Path("s-0.tar").write_bytes(whole)
    with pytest.raises(FileNotFoundError, match=r"s-1\.tar: no such file"):
        open_images("s-{0..1}.tar")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_label_or_caption_costs_the_label_or_caption(tmp_path, monkeypatch, workers):
    monkeypatch.chdir(tmp_path)
    samples = [{"cls": b"3"}, {"cls": b"cat", "txt": b"fine"}, {"cls": b"4", "txt": b"\xff"}, {"json": b"{"}]
    tar_of(Path("s.tar"), [{"__key__": str(i), "png": png(i)} | sample for i, sample in enumerate(samples)])
    source = open_images("s.tar")
    (batch,) = ordered_batches(source, AUGMENT, 4, workers)
    assert batch.labels == (3, None, 4, None)
    assert batch.captions == (None, "fine", None, None)
    assert list(source.notes) == ["s/1", "s/2", "s/3"]
    assert source.unreadable == {}
    assert source.unreadable_summary().startswith("without label or caption 3 of 4 images: s/1 (invalid label: ")


def test_names_in_cls_are_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    samples = [{"cls": b"dog\n"}, {}, {"cls": b"cat"}, {"cls": b"7"}, {"cls": b""}]
    tar_of(Path("s.tar"), [{"__key__": str(i), "png": png(i)} | sample for i, sample in enumerate(samples)])
    source = open_images("s.tar")
    assert source.class_names == ("7", "cat", "dog")
    assert [source.label(i) for i in range(5)] == [2, None, 1, 0, None]


def test_no_picture_in_a_tar_is_lost(tmp_path, monkeypatch):
    """Dots in names, links, and members of equal name, as `tar` itself unpacks them (equal names apart)."""
    monkeypatch.chdir(tmp_path)
    for value, name in enumerate(["a/x.v1.png", "a/x.v2.png", "a/y.png", "a/y.seg.png", "a/z.png", ".hidden.png"]):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(png(value))
    Path("a/x.v2.txt").write_text("the second")
    os.link("a/y.png", "a/zz.png")
    Path("a/symbolic.png").symlink_to("../a/z.png")
    Path("a/broken.png").symlink_to("elsewhere.png")
    with tarfile.open("s.tar", "w") as archive:
        archive.add("a/symbolic.png")  # before what it points to
        for name in ("a/x.v1.png", "a/x.v2.png", "a/x.v2.txt", "a/y.png", "a/y.seg.png", "a/z.png", "a/zz.png"):
            archive.add(name)
        archive.add("a/broken.png")
        archive.add(".hidden.png")
        Path("a/y.png").write_bytes(png(9))
        archive.add("a/y.png")
    source = open_images("s.tar")
    found = {source.key(i): i for i in range(len(source))}
    values = {"s/a/symbolic": 4, "s/a/x.v1": 0, "s/a/x.v2": 1, "s/a/y": 2, "s/a/z": 4, "s/a/zz": 2, "s/a/y#2": 9}
    assert set(found) == {*values, "s/a/broken"}
    assert {key: int(source.load(found[key])[0, 0, 0]) for key in values} == values
    assert source.caption(found["s/a/x.v2"]) == "the second"
    with pytest.raises(ValueError, match="s/a/broken: link to a file that is not in the shard"):
        source.load(found["s/a/broken"])


def test_braces_count_down_too():
    assert expand_braces("x-{3..1}.tar") == ["x-3.tar", "x-2.tar", "x-1.tar"]
    assert expand_braces("x-{09..11}.tar") == ["x-09.tar", "x-10.tar", "x-11.tar"]


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_columns_are_found_or_named_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = {
        "jpg": [png(1)], "thumbnail": [png(2)], "cls": [3], "width": [4], "text": ["five"], "alt": ["six"], "n": [-1],
    }  # fmt: skip
    parquet.write_table(pa.table(table), "t.parquet")

    def known(data):
        source = open_images(data)
        return int(source.load(0)[0, 0, 0]), source.label(0), source.caption(0)

    assert known("t.parquet") == (1, 3, "five")
    assert known("t.parquet?image=thumbnail&label=width&caption=alt") == (2, 4, "six")
    assert known("t.parquet?label=n") == (1, None, "five")  # -1 stands for no label
    for options, message in (
        ("image=width", r"image: got 'width', expected one of jpg, thumbnail"),
        ("label=jpg", r"label: got 'jpg', expected one of cls, width, text, alt, n"),
        ("caption=jpg", r"caption: got 'jpg', expected one of text, alt"),
        ("picture=jpg", r"got option 'picture', expected one of image, label, caption"),
    ):
        with pytest.raises(ValueError, match=message):
            open_images(f"t.parquet?{options}")
    parquet.write_table(pa.table({"a": [b"x"], "b": [b"x"]}), "two.parquet")
    with pytest.raises(ValueError, match=r"several candidates: a, b; name one of a, b as image=COLUMN"):
        open_images("two.parquet")
    parquet.write_table(pa.table({"a": [1]}), "none.parquet")
    with pytest.raises(ValueError, match="no column holds picture files"):
        open_images("none.parquet")


@pytest.mark.parametrize(
    ("values", "kind", "names", "labels"),
    [
        (["dog", "cat", None, "", "dog"], pa.string(), ("cat", "dog"), [1, 0, None, None, 1]),
        (["dog", "cat", None, "cat", "dog"], pa.dictionary(pa.int8(), pa.string()), ("cat", "dog"), [1, 0, None, 0, 1]),
        ([True, False, None, True, True], pa.bool_(), ("false", "true"), [1, 0, None, 1, 1]),
        ([3.0, 0.0, None, float("nan"), -1.0], pa.float64(), (), [3, 0, None, None, None]),
        ([3, 0, None, 2, -1], pa.dictionary(pa.int8(), pa.int64()), (), [3, 0, None, 2, None]),
    ],
)
def test_label_columns_of_every_type(tmp_path, monkeypatch, values, kind, names, labels):
    monkeypatch.chdir(tmp_path)
    table = pa.table({"image": [png(i) for i in range(5)], "label": pa.array(values, kind)})
    parquet.write_table(table, "t.parquet", row_group_size=2)
    dataset = datasets.Dataset.from_parquet("t.parquet", cache_dir=str(tmp_path / "cache"))
    for source in (open_images("t.parquet"), HubImages(dataset, "set")):
        assert source.class_names == names
        assert [source.label(i) for i in range(5)] == labels


def test_a_class_has_one_number_in_all_splits_of_a_folder(tmp_path):
    for split, kinds in (("train", ["cat", "newt"]), ("val", ["dog", "newt"])):
        table = pa.table({"image": [b"\x89PNG"] * 2, "label": kinds})
        parquet.write_table(table, tmp_path / f"{split}-0.parquet")
    for data, labels in ((tmp_path, [0, 2]), (f"{tmp_path}:val", [1, 2])):
        source = open_images(data)
        assert source.class_names == ("cat", "dog", "newt")
        assert [source.label(i) for i in range(2)] == labels


def test_a_stream_has_numbers_as_labels_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = datasets.Dataset.from_dict({"image": [png()], "label": ["cat"]}).to_iterable_dataset()
    assert HubStream(dataset, "set").label(0) is None
    with pytest.raises(ValueError, match="label: got 'label' with class names"):
        HubStream(dataset, "set", columns={"label": "label"})


def test_a_row_without_a_picture_is_skipped_and_named(tmp_path):
    parquet.write_table(pa.table({"image": pa.array([None, b"\x89PNG"], pa.binary())}), tmp_path / "t.parquet")
    source = open_images(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="none of the 2 images can be read: skipped 2 of 2 images: t/0000000"):
        list(ordered_batches(source, AUGMENT, 2))
    assert source.unreadable["t/0000000"] == "no picture in this row"


def test_damaged_parquet(tmp_path, folder):
    path = tmp_path / "t.parquet"
    as_dataset(rows_of(folder)).to_parquet(path, batch_size=4)
    whole = bytearray(path.read_bytes())
    source = ParquetImages([path])
    start = parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    whole[start : start + 200] = bytes(200)  # the first pages of the second row group
    path.write_bytes(whole)
    batches = list(ordered_batches(source, AUGMENT, 4))
    assert sum(len(batch) for batch in batches) == 6  # 11, less one damaged picture and the four of the row group
    assert sum("row group 1 cannot be read" in reason for reason in source.unreadable.values()) == 4
    path.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=r"t\.parquet: cannot be read as Parquet"):
        open_images(path)


def test_a_picture_that_a_row_only_points_to(folder, tmp_path):
    features = datasets.Features(image=datasets.Image())
    paths = sorted(str(path) for path in folder.rglob("*.*"))
    table = datasets.Dataset.from_dict({"image": [*paths, "/absent.png"]}, features=features)
    parquet.write_table(pa.table({"image": table.data["image"]}), tmp_path / "t.parquet")
    files = ImageFiles(folder)
    for source in (HubImages(table, "set"), ParquetImages([tmp_path / "t.parquet"])):
        np.testing.assert_array_equal(source.load(0), files.load(0))
        with pytest.raises(ValueError, match=r"00011: /absent\.png: cannot be opened \(No such file"):
            source.load(11)


def test_splits_of_tables(folder, tmp_path):
    rows = rows_of(folder)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, part in (("train", rows[:6]), ("validation", rows[6:])):
        as_dataset(part).to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    both = {"train": as_dataset(rows[:6]), "test": as_dataset(rows[6:])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "disk")
    for data, count in (("hub", 6), ("hub:train", 6), ("hub:val", 5), ("disk", 6), ("disk:test", 5)):
        assert len(open_images(f"{tmp_path}/{data}")) == count
    assert len(open_images(f"hf://{tmp_path}/hub:validation")) == 5
    with pytest.raises(ValueError, match="split: got 'test', expected one that file names contain: train, validation"):
        open_images(f"{tmp_path}/hub:test")
    with pytest.raises(ValueError, match="split: got 'all', expected one of train, test"):
        open_images(f"{tmp_path}/disk:all")
    with pytest.raises(ValueError, match="have no split, only folders have"):
        open_images(f"{tmp_path}/hub/data/*.parquet:train")


def test_a_folder_of_several_kinds_is_refused(tmp_path):
    for name in ("a.tar", "b.png", "c/d.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds 1 \.tar, 1 pictures, 1 \.parquet; name the files of one kind"):
        open_images(tmp_path)


def test_options_of_the_hub(tmp_path):
    for options, message in (
        ("streaming=maybe", "streaming: got 'maybe', expected true or false"),
        ("stream=true", "got option 'stream', expected one of image, label, caption, config, streaming"),
    ):
        with pytest.raises(ValueError, match=message):
            open_images(f"hf://{tmp_path}?{options}")


def test_a_stream_counts_itself_and_notices_that_it_ends_early(folder, monkeypatch):
    monkeypatch.setattr(hub_module, "SHUFFLE_WINDOW", 4)
    rows = rows_of(folder)
    stream = HubStream(as_dataset(rows).to_iterable_dataset(num_shards=3), "set")
    assert len(stream) == 11
    for index in (10, 3, 4, 0, 9):
        assert stream.caption(index) == rows[index][3]
    stream._count = 13
    with pytest.raises(SourceVanishedError, match="set: the stream ended after 11 of 13 images"):
        stream.load(11)


# ---- what is missing or goes away ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "kind"), [("pyarrow", "parquet"), ("datasets", "arrow")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, module, kind):
    path = tmp_path / f"x.{kind}"
    path.touch()
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match=rf"{path}: .*{module} is not installed; .*pip install 'smalti\[datasets\]'"):
        open_images(path)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_a_source_that_vanishes_is_one_line(folder, tmp_path, monkeypatch, kind, workers):
    monkeypatch.setattr(parquet_module, "SHUFFLE_WINDOW", 1)  # keep one row group only
    stored = tmp_path / "stored"
    source = ImageFiles(folder) if kind == "folder" else store(kind, rows_of(folder), stored)
    stream = training_batches(source, AUGMENT, 4, 0, cache_bytes=0, workers=workers)
    next(stream)
    (folder if kind == "folder" else stored).rename(tmp_path / "elsewhere")
    with pytest.raises(SourceVanishedError) as caught:
        for _ in islice(stream, 9):
            pass
    assert "\n" not in str(caught.value)
    assert str(folder if kind == "folder" else stored) in str(caught.value)
