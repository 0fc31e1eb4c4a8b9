"""Batches: every epoch complete, each batch a function of seed and number alone, and no crash on bad files."""

import os
import signal
from itertools import islice
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory as pin_memory_of_torch

from smalti.data import loader
from smalti.data.files import ImageFiles
from smalti.data.loader import ordered_batches, training_batches
from smalti.data.transforms import TransformConfig
from smalti.ops.pixels import to_float, to_uint8

AUGMENT = TransformConfig(size=8, crop="random", zoom=2.0, flip=True)
PLAIN = TransformConfig(size=8)


@pytest.fixture
def photos(tmp_path):
    """Seven readable pictures of different sizes in two classes, named 0...6."""
    generator = np.random.default_rng(0)
    for number in range(7):
        path = tmp_path / ("odd" if number % 2 else "even") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (10 + number, 20 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path


def same(one, other):
    return (
        torch.equal(one.image, other.image)
        and one.keys == other.keys
        and one.labels == other.labels
        and one.unreadable == other.unreadable
    )


def take(count, source, transform=AUGMENT, batch_size=3, seed=5, **options):
    return list(islice(training_batches(source, transform, batch_size, seed, **options), count))


# --- the training stream ---


@pytest.mark.parametrize("workers", [0, 1])
def test_images_can_stay_as_they_are_stored(photos, workers):
    source = ImageFiles(photos)
    for stored, floats in zip(take(3, source, pixels="uint8", workers=workers), take(3, source), strict=True):
        assert stored.image.dtype == torch.uint8
        assert torch.equal(to_float(stored.image), floats.image)
        assert (stored.keys, stored.labels) == (floats.keys, floats.labels)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_every_epoch_is_a_permutation_and_batches_run_over_its_end(photos, batch_size):
    source = ImageFiles(photos)
    batches = take(21, source, batch_size=batch_size)
    assert all(len(batch) == batch_size == batch.image.shape[0] for batch in batches)
    stream = [key for batch in batches for key in batch.keys]
    epochs = [tuple(stream[start : start + 7]) for start in range(0, len(stream) - 6, 7)]
    assert all(sorted(epoch) == sorted(source.key(i) for i in range(7)) for epoch in epochs)
    assert len(set(epochs)) == len(epochs)


def test_keys_labels_and_pixels_belong_together(photos):
    source = ImageFiles(photos)
    expected = {source.key(i): (source.label(i), PLAIN.apply(source.load(i))) for i in range(7)}
    for batch in take(8, source, PLAIN):
        assert batch.image.dtype == torch.float32
        for key, label, image in zip(batch.keys, batch.labels, to_uint8(batch.image), strict=True):
            assert label == expected[key][0] == ("odd" in key)
            assert torch.equal(image, expected[key][1])


def test_the_augmentation_of_an_image_depends_on_seed_and_epoch_only(photos):
    def first_two_epochs(batch_size, seed):
        batches = take(14 // batch_size, ImageFiles(photos), batch_size=batch_size, seed=seed)
        images = [image for batch in batches for image in batch.image]
        keys = [key for batch in batches for key in batch.keys]
        return [dict(zip(keys[at : at + 7], images[at : at + 7], strict=True)) for at in (0, 7)]

    one, other, reseeded = first_two_epochs(1, 5), first_two_epochs(7, 5), first_two_epochs(7, 6)
    for key in one[0]:
        assert torch.equal(one[0][key], other[0][key])
        assert torch.equal(one[1][key], other[1][key])
        assert not torch.equal(one[0][key], one[1][key])
        assert not torch.equal(one[0][key], reseeded[0][key])


@pytest.mark.parametrize("batch_size", [2, 9])
def test_resuming_at_any_batch_continues_bit_for_bit(photos, batch_size):
    source = ImageFiles(photos)
    whole = take(9, source, batch_size=batch_size)
    for start in range(9):
        resumed = take(9 - start, source, batch_size=batch_size, start_batch=start)
        assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_a_stream_is_repeatable_and_the_seed_matters(photos):
    source = ImageFiles(photos)
    one, again, other = take(5, source), take(5, source), take(5, source, seed=6)
    assert all(same(a, b) for a, b in zip(one, again, strict=True))
    assert [batch.keys for batch in one] != [batch.keys for batch in other]


def test_global_random_states_are_neither_used_nor_moved(photos):
    source = ImageFiles(photos)
    expected = take(3, source)
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    got = take(3, source)
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert all(same(a, b) for a, b in zip(expected, got, strict=True))


def test_the_cache_changes_nothing_but_the_number_of_reads(photos):
    cached = take(20, ImageFiles(photos))
    uncached = take(20, ImageFiles(photos), cache_bytes=0)
    assert all(same(a, b) for a, b in zip(cached, uncached, strict=True))


# --- worker processes ---


def test_workers_give_the_same_batches_and_report_the_same_files(photos):
    (photos / "even" / "empty.png").touch()
    (photos / "text.jpg").write_text("not an image")
    here, there = ImageFiles(photos), ImageFiles(photos)
    for one, other in zip(take(8, here), take(8, there, workers=2), strict=True):
        assert same(one, other)
    assert here.unreadable == there.unreadable
    assert sorted(here.unreadable) == ["even/empty.png", "text.jpg"]
    ordered = zip(ordered_batches(here, PLAIN, 2), ordered_batches(there, PLAIN, 2, workers=2), strict=True)
    assert all(same(one, other) for one, other in ordered)


def test_pinning_changes_no_pixel(photos, monkeypatch):
    """torch's own way to pin what a loader yields, with its last act, for which there must be a GPU, replaced."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.clone()) or pinned[-1])
    plain = loader.DataLoader

    def pinning(*arguments, pin_memory, **options):
        collate = pin_memory_of_torch if pin_memory else options["collate_fn"]
        return plain(*arguments, **{**options, "collate_fn": collate})

    monkeypatch.setattr(loader, "DataLoader", pinning)
    source = ImageFiles(photos)
    expected = take(4, source, pixels="uint8")
    for pixels in ("uint8", "pinned"):
        for one, other in zip(expected, take(4, source, pixels=pixels), strict=True):
            assert same(one, other)
            assert any(other.image is tensor for tensor in pinned) is (pixels == "pinned")


@pytest.mark.parametrize(
    ("workers", "device", "cpus", "expected"),
    [("auto", "cuda", 16, 4), ("auto", "cuda", 3, 2), ("auto", "cuda", 1, 0), ("auto", "cpu", 16, 0), (7, "cpu", 2, 7)],
)
def test_a_gpu_is_fed_by_several_processes(monkeypatch, workers, device, cpus, expected):
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda process: range(cpus), raising=False)
    assert loader.choose_workers(workers, torch.device(device)) == expected


def test_workers_outlive_an_interrupt_meant_for_the_main_process_and_end_with_the_stream(photos):
    before = set(active_children())
    source = ImageFiles(photos)
    expected = take(12, source)
    stream = training_batches(source, AUGMENT, 3, 5, workers=1)
    got = [next(stream)]
    workers = set(active_children()) - before
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
    got += islice(stream, 11)
    assert all(same(a, b) for a, b in zip(expected, got, strict=True))
    stream.close()
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0


# --- files that cannot be read ---


def test_a_bad_file_makes_its_batch_smaller_and_is_named(photos):
    bad = photos / "even" / "4.png"
    bad.write_bytes(bad.read_bytes()[:60])
    source = ImageFiles(photos)
    batches = take(7, source)
    assert sum(len(batch) for batch in batches) == 7 * 3 - 3
    for batch in batches:
        assert len(batch) + len(batch.unreadable) == 3
        assert batch.image.shape[0] == len(batch.keys) == len(batch.labels)
    assert [batch.unreadable for batch in batches if batch.unreadable] == [("even/4.png",)] * 3
    assert "cannot be decoded" in source.unreadable["even/4.png"]
    assert source.unreadable_summary().startswith("skipped 1 of 7 images: even/4.png (cannot be decoded")


def test_a_batch_of_bad_files_only_takes_the_next_good_one_and_still_resumes(photos):
    for number in (2, 3, 4):
        (photos / ("odd" if number % 2 else "even") / f"{number}.png").write_bytes(b"")
    source = ImageFiles(photos)
    batches = take(14, source, batch_size=1)
    assert all(len(batch) == 1 for batch in batches)
    replaced = [batch for batch in batches if batch.unreadable]
    assert len(replaced) == 6
    order = [source.key(i) for i in range(7)]
    for batch in replaced:
        at = order.index(batch.unreadable[0])
        passed_over = [order[(at + step) % 7] for step in range(7)]
        good = [key for key in passed_over if key not in source.unreadable]
        assert batch.keys == (good[0],)
        assert list(batch.unreadable) == passed_over[: passed_over.index(good[0])]
    assert all(same(a, b) for a, b in zip(batches[9:], take(5, source, batch_size=1, start_batch=9), strict=True))


def test_a_file_that_disappears_meanwhile_is_only_skipped(photos):
    source = ImageFiles(photos)
    stream = training_batches(source, PLAIN, 7, 0, cache_bytes=0)
    assert len(next(stream)) == 7
    (photos / "odd" / "3.png").unlink()
    assert len(next(stream)) == 6
    assert "cannot be opened" in source.unreadable["odd/3.png"]


@pytest.mark.parametrize(
    "batches", [lambda s: training_batches(s, PLAIN, 3, 0), lambda s: ordered_batches(s, PLAIN, 3)]
)
def test_nothing_readable_at_all_is_an_error_that_names_files(tmp_path, batches):
    for number in range(4):
        (tmp_path / f"{number}.png").touch()
    with pytest.raises(ValueError, match=r"none of the 4 images can be read: .*0\.png \(the file is empty\)"):
        next(batches(ImageFiles(tmp_path)))


# --- the ordered pass ---


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_ordered_gives_every_image_once_in_order_whatever_the_batch_size(photos, batch_size):
    source = ImageFiles(photos)
    batches = list(ordered_batches(source, AUGMENT, batch_size))
    assert [key for batch in batches for key in batch.keys] == [source.key(i) for i in range(7)]
    assert [label for batch in batches for label in batch.labels] == [source.label(i) for i in range(7)]
    images = torch.cat([batch.image for batch in batches])
    expected = torch.stack([PLAIN.apply(source.load(i)) for i in range(7)])  # the crop is the center, nothing random
    assert torch.equal(to_uint8(images), expected)
    assert all(len(batch) <= batch_size for batch in batches)


def test_ordered_at_native_size_splits_where_the_size_changes(tmp_path):
    sizes = [(4, 5), (4, 5), (4, 5), (6, 5), (6, 5), (4, 5)]
    for number, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height), (number, 0, 0)).save(tmp_path / f"{number}.png")
    batches = list(ordered_batches(ImageFiles(tmp_path), TransformConfig(), batch_size=2))
    assert [batch.image.shape[2:] for batch in batches] == [(4, 5), (4, 5), (6, 5), (6, 5), (4, 5)]
    assert [len(batch) for batch in batches] == [2, 1, 1, 1, 1]
    assert [key for batch in batches for key in batch.keys] == [f"{number}.png" for number in range(6)]


def test_ordered_skips_and_reports_each_bad_file_once(tmp_path):
    for number in range(8):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
    for number in (0, 1, 4, 7):
        (tmp_path / f"{number}.png").write_text("x")
    source = ImageFiles(tmp_path)
    batches = list(ordered_batches(source, TransformConfig(size=4), batch_size=2))
    assert [batch.keys for batch in batches] == [("2.png", "3.png"), ("5.png",), ("6.png",)]
    assert [batch.unreadable for batch in batches] == [("0.png", "1.png"), ("4.png",), ("7.png",)]
    assert sorted(source.unreadable) == ["0.png", "1.png", "4.png", "7.png"]


def test_a_last_batch_of_bad_files_is_still_on_record(tmp_path):
    for number in range(4):
        Image.new("L", (4, 4)).save(tmp_path / f"{number}.png")
    for number in (2, 3):
        (tmp_path / f"{number}.png").write_bytes(b"")
    source = ImageFiles(tmp_path)
    assert [len(batch) for batch in ordered_batches(source, PLAIN, 2)] == [2]
    assert sorted(source.unreadable) == ["2.png", "3.png"]


# --- every kind in one folder ---


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_as_people_have_it(tmp_path, channels):
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8))
    rgb.save(tmp_path / "rgb.jpg")
    rgb.convert("L").resize((1, 17)).save(tmp_path / "thin.png")
    rgb.convert("RGBA").save(tmp_path / "alpha.webp")
    rgb.quantize(8).save(tmp_path / "palette.bmp")
    rgb.convert("CMYK").save(tmp_path / "print.tif")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(tmp_path / "deep.png")
    rgb.convert("1").save(tmp_path / "bit.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    source = ImageFiles(tmp_path, channels)
    (ordered,) = ordered_batches(source, PLAIN, 8)
    assert ordered.image.shape == (7, channels, 8, 8)
    assert ordered.unreadable == ("broken.png",)
    (training,) = take(1, source, batch_size=8)
    assert training.image.shape == (7, channels, 8, 8)
    assert training.image.abs().max() <= 1


# --- arguments ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0, expected at least 1"),
        ({"seed": -1}, "seed: got -1, expected at least 0"),
        ({"start_batch": -1}, "start_batch: got -1, expected at least 0"),
        ({"workers": -1}, "workers: got -1, expected at least 0"),
        ({"cache_bytes": -1}, "cache_bytes: got -1, expected at least 0"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_batch(photos, arguments, message):
    with pytest.raises(ValueError, match=message):
        training_batches(ImageFiles(photos), PLAIN, **({"batch_size": 2, "seed": 0} | arguments))
    if set(arguments) & {"batch_size", "workers"}:
        with pytest.raises(ValueError, match=message):
            ordered_batches(ImageFiles(photos), PLAIN, **({"batch_size": 2} | arguments))


def test_training_without_a_size_wants_equal_images(photos):
    stream = training_batches(ImageFiles(photos), TransformConfig(), 3, 0)
    with pytest.raises(ValueError, match="size: got none for images that differ in size"):
        next(stream)
    assert len(next(training_batches(ImageFiles(photos), TransformConfig(), 1, 0))) == 1
