"""Token data sets: exact whatever happens, verified, read back, refused where they do not belong."""

import json
import os
import shutil
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from smalti.cli import main
from smalti.data import TokenDataset, TransformConfig, ViewsConfig, load_image, open_images, view_batches
from smalti.formats.storage import Storage
from smalti.formats.token_set import read_manifest, verify
from smalti.formats.token_shards import TokenRow, read_shard
from smalti.jobs.tokenize import TokenizeConfig, tokenize
from smalti.tokenizers import SimpleVQVAE
from smalti.tokensets import shards
from smalti.tokensets.shards import _encode, _mismatch
from smalti.zoo import load

pytest.importorskip("pyarrow", reason="needs the extra smalti[datasets]")

IMAGES = 40
GOOD = IMAGES - 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer of two scales, trained by nobody; its codes lie where its latents do."""
    torch.manual_seed(0)
    model = SimpleVQVAE(32, 8, 8, patch_nums=(1, 2, 4)).train()
    model(torch.rand(8, 3, 16, 16) * 2 - 1)
    folder = tmp_path_factory.mktemp("run")
    model.eval().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Class folders of noise in every colour mode; one file is no image."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        path = folder / f"class {i % 3}" / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        mode, channels = [("RGB", 3), ("RGBA", 4), ("L", 1)][i % 3]
        smooth = rng.integers(0, 256, (4, 5, channels), dtype=np.uint8)
        image = Image.fromarray(smooth.squeeze() if channels == 1 else smooth, mode).resize((24 + i % 5, 20))
        image.save(path)
    (folder / "class 1" / "013.png").write_bytes(b"not an image")
    return str(folder)


def config(run: str, photos: str, out: Path | str, **changes: Any) -> TokenizeConfig:
    return TokenizeConfig(run, photos, str(out), **{"size": 16, "shard_images": 16, "device": "cpu"} | changes)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


def visible(folder: Path) -> set[str]:
    """Reads nothing: a running job may rename what is there."""
    return {name for name in names(folder) if not Path(name).name.startswith(".")}


def rows_of(folder: Path) -> list[TokenRow]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in read_shard(path.read_bytes())]


@pytest.fixture(scope="module")
def whole(run: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set made in one go."""
    out = tmp_path_factory.mktemp("whole") / "tokens"
    seen: list[tuple[int, int]] = []
    result = tokenize(config(run, photos, out), lambda done, total: seen.append((done, total)))
    assert (result.images, result.rows, result.tokens, result.shards, result.made) == (GOOD, GOOD, 21, 3, 3)
    assert list(result.unreadable) == ["class 1/013.png"]
    assert seen[0] == (0, IMAGES)
    assert seen[-1] == (IMAGES, IMAGES)
    assert sorted(seen) == seen
    return out


# ---- what is in it ------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_tokenizer_image_by_image(whole: Path, run: str, photos: str) -> None:
    tokenizer, source = load(run), open_images(photos)
    keys = [source.key(i) for i in range(len(source))]
    rows = rows_of(whole)
    assert [row.key for row in rows] == [key for key in keys if key != "class 1/013.png"]
    for row in rows:
        image = source.load(keys.index(row.key))
        pixels = TransformConfig(size=16).apply(image)
        expected = tokenizer.encode(pixels[None]).flatten()[0].numpy()
        assert np.array_equal(row.indices, expected), row.key
        assert row.image_size == image.shape[:2]
        assert row.label == int(row.key[6])
        assert row.grids == ((1, 1), (2, 2), (4, 4))
        height, width = row.image_size  # the centre square, in pixels of the image
        top, left, bottom, right = row.crop
        assert (top, bottom) == (0, height)
        assert (left + right) / 2 == pytest.approx(width / 2, abs=0.7)


def test_the_manifest_says_what_is_there_and_the_tokenizer_comes_along(whole: Path, run: str) -> None:
    manifest = read_manifest(Storage(whole))
    assert verify(Storage(whole)) == []
    assert manifest.fingerprint == load(run).fingerprint == load(whole / "tokenizer").fingerprint
    assert manifest.grids == [[1, 1], [2, 2], [4, 4]]
    assert manifest.image_size == [16, 16]
    assert manifest.class_names == ["class 0", "class 1", "class 2"]
    assert manifest.batch_mismatch is None
    assert not (whole / "progress").exists()


def test_views_are_crops_and_mirror_images_of_the_image(run: str, photos: str, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    result = tokenize(config(run, photos, out, crops=2, mirrored=True, zoom=1.5, seed=3))
    assert (result.images, result.rows) == (GOOD, 4 * GOOD)
    tokenizer, source = load(run), open_images(photos)
    rows = rows_of(out)
    assert [row.view for row in rows] == [0, 1, 2, 3] * GOOD
    for row in rows[:8]:
        image = Image.fromarray(source.load([source.key(i) for i in range(len(source))].index(row.key)))
        top, left, bottom, right = row.crop
        gap = 3.0 if row.view > 1 else None
        cut = image.resize((16, 16), Image.Resampling.LANCZOS, (left, top, right, bottom), reducing_gap=gap)
        pixels = np.asarray(cut)[:, ::-1] if row.mirrored else np.asarray(cut)
        tokens = tokenizer.encode(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None])
        assert (tokens.flatten()[0].numpy() == row.indices).mean() > 0.95  # box sides are kept as float32
    assert {row.mirrored for row in rows if row.view % 2} == {True}
    assert len({row.crop for row in rows if row.view == 2}) > GOOD / 2


def test_images_at_their_own_size(run: str, photos: str, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    result = tokenize(config(run, photos, out, size="native"))
    assert result.tokens is None
    manifest = read_manifest(Storage(out))
    assert manifest.grids is None
    assert manifest.image_size is None
    assert {row.grids[-1] for row in rows_of(out)} == {(5, 6), (5, 7)}
    with pytest.raises(ValueError, match="images differ in size"):
        TokenDataset(out)


# ---- exact and resumable ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"batch_size": 3}, {"workers": 1}, {"workers": 2, "batch_size": 100}])
def test_batch_size_and_workers_change_no_byte(
    whole: Path, run: str, photos: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    tokenize(config(run, photos, tmp_path / "tokens", **changes))
    assert files(tmp_path / "tokens") == files(whole)


def test_an_interrupted_job_goes_on_to_the_same_bytes(
    whole: Path, run: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off at every point at which something is written: the set is incomplete, then whole, then nothing to do."""
    out = tmp_path / "tokens"
    write = Storage.write
    for survive in range(1, 12):
        shutil.rmtree(out, ignore_errors=True)
        left = [survive]

        def harmed(self: Storage, name: str, data: bytes, left: list[int] = left) -> None:
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            left[0] -= 1
            write(self, name, data)

        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write", harmed)
            try:
                tokenize(config(run, photos, out))
                break
            except OSError:
                pass
        with pytest.raises(FileNotFoundError):
            read_manifest(Storage(out))
        tokenize(config(run, photos, out))
        assert files(out) == files(whole), survive
    else:
        pytest.fail("the job never came to its end")
    assert tokenize(config(run, photos, out)).made == 0
    assert files(out) == files(whole)


def test_kill_9_at_random_moments(whole: Path, run: str, photos: str, tmp_path: Path) -> None:
    """Each run is killed some milliseconds after it has written something; what stays is enough to go on."""
    out, context, rng = tmp_path / "tokens", get_context("forkserver"), np.random.default_rng(0)
    context.set_forkserver_preload([tokenize.__module__])
    killed = 0
    for _ in range(6):
        there = visible(out)
        process = context.Process(target=tokenize, args=(config(run, photos, out),))
        process.start()
        while process.is_alive() and not visible(out) - there:
            time.sleep(0.0005)
        time.sleep(float(rng.random()) * 0.02)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 3
    tokenize(config(run, photos, out))
    leftovers = set(files(out)) - visible(out)  # a killed write leaves its hidden temporary file, nothing else
    assert all(".tmp" in name for name in leftovers)
    assert {name: data for name, data in files(out).items() if name not in leftovers} == files(whole)


def test_other_images_settings_and_folders_are_refused(whole: Path, run: str, photos: str, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    shutil.copytree(whole, out)
    with pytest.raises(FileExistsError, match="contains another token data set"):
        tokenize(config(run, photos, out, size=32))
    assert files(out) == files(whole)
    tokenize(config(run, photos, out, mirrored=True, force=True))
    assert len(rows_of(out)) == 2 * GOOD
    (out / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match=r"contains letter.txt, which is not part"):
        tokenize(config(run, photos, out, force=True))
    with pytest.raises(FileExistsError, match="contains files"):
        tokenize(config(run, photos, photos))
    with pytest.raises(ValueError, match="multiple of 16"):
        config(run, photos, out, shard_images=10)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="none of the 1 images"):
        tokenize(config(run, str(tmp_path / "bad"), tmp_path / "nothing"))


def test_object_stores_hold_the_same_set(whole: Path, run: str, photos: str) -> None:
    tokenize(config(run, photos, "memory://bucket/tokens"))
    storage = Storage("memory://bucket/tokens")
    assert {name: storage.read(name) for name in storage.names()} == files(whole)
    assert verify(storage) == []


# ---- the data set -------------------------------------------------------------------------------------------------


def test_dataset_rows_are_those_of_the_shards(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "tokens")
    dataset = TokenDataset(tmp_path / "tokens")
    rows = rows_of(whole)
    assert (len(dataset), dataset.num_tokens, dataset.num_classes) == (GOOD, 21, 3)
    for i, row in enumerate(rows):
        tokens, label = dataset[i]
        assert tokens.dtype == torch.int64
        assert np.array_equal(tokens.numpy(), row.indices)
        assert label == row.label
    assert isinstance(dataset._tokens, np.memmap)
    again = TokenDataset(tmp_path / "tokens")  # from the arrays that the first opening left
    assert torch.equal(again[7][0], dataset[7][0])
    loaded = [tokens for batch, _ in DataLoader(dataset, batch_size=5, num_workers=0) for tokens in batch]
    assert torch.equal(torch.stack(loaded), dataset.batch(range(GOOD)).tokens)


@pytest.mark.parametrize(("world", "batch_size"), [(1, 4), (2, 5), (3, 7)])
def test_epochs_hold_each_row_once_over_processes_and_resume_anywhere(
    whole: Path, tmp_path: Path, world: int, batch_size: int
) -> None:
    shutil.copytree(whole, tmp_path / "tokens")
    dataset = TokenDataset(tmp_path / "tokens")
    names = {row.indices.tobytes(): i for i, row in enumerate(rows_of(whole))}
    number = len(names)

    def stream(start: int, count: int) -> list[bytes]:
        parts = [dataset.batches(batch_size, 1, start, rank, world) for rank in range(world)]
        rows = []
        for _ in range(count):
            for part in parts:
                rows += [tokens.numpy().tobytes() for tokens in next(part).tokens]
        return rows

    steps = -(-3 * GOOD // (batch_size * world))
    rows = stream(0, steps)
    if number == GOOD:  # every row has its own tokens
        for epoch in range(2):
            assert sorted(rows[epoch * GOOD : (epoch + 1) * GOOD]) == sorted(names)
    assert rows[:GOOD] != rows[GOOD : 2 * GOOD]
    for start in (1, 3):
        assert stream(start, steps - start) == rows[start * batch_size * world :]


def test_strangers_are_refused_by_name(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "tokens")
    dataset = TokenDataset(tmp_path / "tokens")
    known = {"fingerprint": dataset.manifest.fingerprint, "vocab_size": 32, "grids": dataset.manifest.grids}
    dataset.require(**known)
    for change, message in (
        ({"fingerprint": "ab" * 32}, "got tokens of tokenizer"),
        ({"vocab_size": 64}, "got vocab_size 32, expected 64"),
        ({"grids": [[1, 1]]}, "got scales"),
    ):
        with pytest.raises(ValueError, match=message):
            dataset.require(**{**known, **change})


def test_a_damaged_shard_is_not_unpacked(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns(".arrays"))
    data = bytearray((out / "tokens-00001.parquet").read_bytes())
    data[300] ^= 1
    (out / "tokens-00001.parquet").write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"tokens-00001.parquet: altered"):
        TokenDataset(out)
    assert not list((out / ".arrays").glob("*.npy"))


def test_folders_that_cannot_be_written_use_the_cache(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "tokens", ignore=shutil.ignore_patterns(".arrays"))
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert len(TokenDataset(tmp_path / "tokens")) == GOOD
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()) == [
        "labels",
        "record",
        "tokens",
    ]


def flip(path: Path, position: int = -1) -> None:
    """Change one bit; the times of the file change, too."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture
def unpacked(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set that was opened once."""
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))
    shutil.copytree(whole, tmp_path / "tokens", ignore=shutil.ignore_patterns(".arrays"))
    TokenDataset(tmp_path / "tokens")
    return tmp_path / "tokens"


@pytest.mark.parametrize("pattern", ["tokens-*", "labels-*", "record-*"])
@pytest.mark.parametrize("position", [-1, 20])
def test_altered_arrays_are_made_again(whole: Path, unpacked: Path, pattern: str, position: int) -> None:
    (path,) = (unpacked / ".arrays").glob(pattern)
    good = path.read_bytes()
    flip(path, position)
    assert main(["tokens", "verify", str(unpacked)]) == 1
    dataset = TokenDataset(unpacked)
    assert [dataset[i][0].tolist() for i in range(GOOD)] == [row.indices.tolist() for row in rows_of(whole)]
    assert [dataset[i][1] for i in range(GOOD)] == [row.label for row in rows_of(whole)]
    assert main(["tokens", "verify", str(unpacked)]) == 0
    assert pattern == "record-*" or path.read_bytes() == good


def test_arrays_that_fit_are_not_made_again(unpacked: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (unpacked / ".arrays").iterdir()}
    assert len(before) == 3
    TokenDataset(unpacked)
    assert {path: path.stat().st_mtime_ns for path in (unpacked / ".arrays").iterdir()} == before
    shutil.copytree(unpacked, tmp_path / "copy")  # keeps the times
    TokenDataset(tmp_path / "copy")
    assert {path.stat().st_mtime_ns for path in (tmp_path / "copy/.arrays").iterdir()} == set(before.values())
    os.utime(tmp_path / "copy/tokens-00001.parquet")
    TokenDataset(tmp_path / "copy")
    assert {path.stat().st_mtime_ns for path in (tmp_path / "copy/.arrays").iterdir()}.isdisjoint(before.values())


def test_verify_names_arrays_whose_damage_kept_size_and_time(
    unpacked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (unpacked / ".arrays").glob("tokens-*")
    status = path.stat()
    flip(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert main(["tokens", "verify", str(unpacked)]) == 1
    assert f"{path}: altered (SHA-256 differs); delete it" in capsys.readouterr().err
    path.unlink()
    TokenDataset(unpacked)
    assert main(["tokens", "verify", str(unpacked)]) == 0


def test_a_shard_altered_after_the_unpacking_is_refused(unpacked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(unpacked / "tokens-00001.parquet", 300)
    with pytest.raises(ValueError, match=r"tokens-00001.parquet: altered"):
        TokenDataset(unpacked)
    assert main(["tokens", "show", str(unpacked), "nobody.png", str(unpacked / "x.png")]) == 2
    assert f"{unpacked}/tokens-00001.parquet: altered (SHA-256 differs)" in capsys.readouterr().err
    (unpacked / "tokens-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokens-00001.parquet"):
        TokenDataset(unpacked)


def test_a_set_in_a_store_is_unpacked_once(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))
    storage = Storage("memory://unpacked/tokens")
    for name, data in files(whole).items():
        storage.write(name, data)
    dataset = TokenDataset(storage.root)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert dataset[3][0].tolist() == TokenDataset(storage.root)[3][0].tolist() == rows_of(whole)[3].indices.tolist()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before
    storage.write("tokens-00001.parquet", b"PAR1")
    with pytest.raises(ValueError, match=r"memory://unpacked/tokens/tokens-00001.parquet: altered"):
        TokenDataset(storage.root)


# ---- the command line ---------------------------------------------------------------------------------------------


def test_the_command_and_its_questions(
    run: str, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokens"
    options = ["--size", "16", "--shard_images", "16", "--device", "cpu"]
    assert main(["tokenize", run, photos, "-o", str(out), *options, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["images"], summary["made"], list(summary["unreadable"])) == (GOOD, 3, ["class 1/013.png"])
    assert main(["tokenize", run, photos, "-o", str(out), *options]) == 0
    text = capsys.readouterr().out
    assert "39 images, 39 rows of 21 tokens; 0 of 3 shards written by this run" in text
    assert "class 1/013.png" in text
    assert main(["tokens", "info", str(out)]) == 0
    assert "21 (1x1 2x2 4x4)" in capsys.readouterr().out
    assert main(["tokens", "verify", str(out)]) == 0

    assert main(["tokens", "show", str(out), "class 0/003.png", str(tmp_path / "again.png")]) == 0
    tokenizer = load(run)
    pixels = TransformConfig(size=16).apply(load_image(Path(photos, "class 0", "003.png")))
    expected = tokenizer.decode(tokenizer.encode(pixels[None]))[0]
    assert np.array_equal(load_image(tmp_path / "again.png"), expected.permute(1, 2, 0).numpy())
    assert main(["tokens", "show", str(out), "nobody.png", str(tmp_path / "x.png")]) == 2
    assert "no view 0 of 'nobody.png'" in capsys.readouterr().err

    (out / "tokens-00002.parquet").unlink()
    assert main(["tokens", "verify", str(out)]) == 1
    assert "tokens-00002.parquet: missing" in capsys.readouterr().err
    assert main(["tokens", "verfy", str(out)]) == 2
    assert "did you mean 'verify'" in capsys.readouterr().err


def test_where_the_batch_matters_the_mismatch_is_measured(
    run: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that looks at its whole batch: tokens change when images come one by one, and it is said how many."""
    tokenizer, source, device = load(run), open_images(photos), torch.device("cpu")
    images = next(view_batches(source, ViewsConfig([16, 16]), [range(8)])).images
    assert _mismatch(tokenizer, images, _encode(tokenizer, images, device), device) == 0.0
    tokenizer.encoder.register_forward_hook(lambda module, args, z: z + 10 * z.mean(dim=0, keepdim=True))
    measured = _mismatch(tokenizer, images, _encode(tokenizer, images, device), device)
    assert measured > 0.05

    monkeypatch.setattr(shards, "_mismatch", lambda *arguments: measured)
    monkeypatch.setattr(shards, "EXACT", ())  # as if this device were another one
    result = tokenize(config(run, photos, tmp_path / "tokens"))
    assert result.batch_mismatch == read_manifest(Storage(tmp_path / "tokens")).batch_mismatch == measured
