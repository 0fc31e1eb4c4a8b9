"""Token data sets on disk: round trips, other readers, and every kind of harm that `verify` must name."""

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clean_interpreter import CleanInterpreter
from hypothesis import given
from hypothesis import strategies as st

from smalti.formats.storage import Storage
from smalti.formats.token_set import MANIFEST, Shard, TokenManifest, read_manifest, shard_name, verify, write_manifest
from smalti.formats.token_shards import TokenRow, index_dtype, read_shard, write_shard

pytest.importorskip("pyarrow", reason="needs the extra smalti[datasets]")

GRIDS = ((1, 1), (2, 3))


def row(i: int, vocab_size: int = 300, view: int = 0, grids: tuple[tuple[int, ...], ...] = GRIDS) -> TokenRow:
    length = sum(int(np.prod(grid)) for grid in grids)
    indices = np.random.default_rng(i).integers(0, vocab_size, length)
    return TokenRow(
        f"cats/{i} ü.png", (40 + i, 30), (0.5, 0.0, 31.25, 30.0), grids, indices, view, bool(view), i % 3 or None, "猫"
    )


def same(a: TokenRow, b: TokenRow) -> bool:
    plain = [{k: v for k, v in vars(r).items() if k != "indices"} for r in (a, b)]
    return plain[0] == plain[1] and np.array_equal(a.indices, b.indices) and b.indices.dtype == np.int64


# ---- shards -------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 2**33),
    st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(1, 4), min_size=2, max_size=3)), max_size=5),
)
def test_rows_come_back_as_they_were(vocab_size: int, shapes: list[tuple[int, list[int]]]) -> None:
    rows = [row(i, vocab_size, grids=(tuple(grid),)) for i, grid in shapes]
    data = write_shard(rows, vocab_size)
    assert all(same(a, b) for a, b in zip(rows, read_shard(data), strict=True))
    assert write_shard(rows, vocab_size) == data


@pytest.mark.parametrize(
    ("vocab_size", "name"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (2**18, "uint32")]
)
def test_indices_take_the_smallest_type(vocab_size: int, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert index_dtype(vocab_size) == np.dtype(name)
    table = pq.read_table(pa.BufferReader(write_shard([row(0, vocab_size)], vocab_size)))
    assert str(table.schema.field("indices").type.value_type) == name


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="outside the vocabulary, expected 0 to 9"):
        write_shard([row(0, 300)], 10)
    with pytest.raises(ValueError, match=r"expected \(7,\) for the grids"):
        TokenRow("a", (1, 1), (0, 0, 1, 1), GRIDS, np.zeros(3, np.int64))


@given(st.data())
def test_a_damaged_shard_is_refused_or_gives_rows(data: st.DataObject) -> None:
    """Never a crash: flipped and truncated bytes end as ValueError, or as rows that the hash would have refused."""
    whole = write_shard([row(0), row(1)], 300)
    position = data.draw(st.integers(0, len(whole) - 1))
    harmed = whole[:position] if data.draw(st.booleans()) else whole[:position] + b"\xff" + whole[position + 1 :]
    with contextlib.suppress(ValueError, UnicodeDecodeError):
        read_shard(harmed)


# ---- storage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["path", "file", "memory"])
def test_storage_is_the_same_everywhere(scheme: str, tmp_path: Path) -> None:
    root = {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{tmp_path.name}"}[scheme]
    storage = Storage(root)
    assert not storage.exists("a")
    for name, data in (("b.bin", b"1"), ("deep/er/a", b"22"), ("b.bin", b"333")):
        storage.write(name, data)
    assert storage.names() == ["b.bin", "deep/er/a"]
    assert storage.names("deep") == ["deep/er/a"]
    assert storage.names("nothing") == []
    assert storage.read("b.bin") == b"333"
    with pytest.raises(FileNotFoundError):
        storage.read("none")
    storage.remove("deep")
    storage.remove("deep")
    assert storage.names() == ["b.bin"]


def test_unknown_protocols_are_a_clear_error() -> None:
    with pytest.raises(ValueError, match="carrier-pigeon"):
        Storage("carrier-pigeon://roof")


# ---- manifest and verify ------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path / "set")
    shards = []
    for n in range(2):
        data = write_shard([row(10 * n + i, view=view) for i in range(3) for view in range(2)], 300)
        storage.write(shard_name(n), data)
        shards.append(Shard(shard_name(n), 6, 3, hashlib.sha256(data).hexdigest()))
    grids = [list(grid) for grid in GRIDS]
    manifest = TokenManifest("f" * 64, 300, grids, [8, 12], {"size": 8}, "photos", shards, {"bad.png": "no image"})
    write_manifest(storage, manifest)
    assert read_manifest(storage) == manifest
    assert (manifest.rows, manifest.images) == (12, 6)
    return storage


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def rewrite(folder: Path, rows: list[TokenRow]) -> None:
    """Another shard with a manifest that vouches for it: only its contents are wrong."""
    storage = Storage(folder)
    manifest, data = read_manifest(storage), write_shard(rows, 2**16)
    storage.write(shard_name(0), data)
    shards = [Shard(shard_name(0), 6, 3, hashlib.sha256(data).hexdigest()), manifest.shards[1]]
    write_manifest(storage, TokenManifest(**{**vars(manifest), "shards": shards}))


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (lambda d: flip(d / shard_name(0), 700), "tokens-00000.parquet: altered"),
    "a missing shard": (lambda d: (d / shard_name(1)).unlink(), "tokens-00001.parquet: missing"),
    "a truncated shard": (lambda d: (d / shard_name(1)).write_bytes(b"PAR1"), "tokens-00001.parquet: altered"),
    "a stray shard": (lambda d: (d / "x.parquet").write_bytes(b""), "x.parquet: not in the manifest"),
    "too few rows": (lambda d: rewrite(d, [row(0), row(1)]), "got 2 rows, expected 6 by the manifest"),
    "a token too large": (
        lambda d: rewrite(d, [row(i, 2**16, view) for i in range(3) for view in range(2)]),
        "contradict the manifest",
    ),
    "other scales": (
        lambda d: rewrite(d, [row(i, 300, view, ((1, 2),)) for i in range(3) for view in range(2)]),
        "contradict the manifest",
    ),
}


def test_a_whole_set_has_no_problems(whole: Storage) -> None:
    assert verify(whole) == []


@pytest.mark.parametrize("harm", HARM)
def test_verify_names_what_was_harmed(whole: Storage, harm: str) -> None:
    assert whole.local is not None
    do, message = HARM[harm]
    do(whole.local)
    problems = verify(whole)
    assert len(problems) == 1
    assert message in problems[0]


def test_a_manifest_that_was_touched_is_refused(whole: Storage) -> None:
    assert whole.local is not None
    path = whole.local / MANIFEST
    text = path.read_text(encoding="utf-8")
    for changed, message in (
        (text.replace('"vocab_size": 300', '"vocab_size": 301'), "checksum differs"),
        (text.replace('"version": 1', '"version": 2'), "version 2"),
        (text[:-20], "damaged"),
        (json.dumps([1]), "damaged"),
        ("{}", "damaged"),
    ):
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_manifest(whole)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="not a token data set"):
        read_manifest(whole)
    whole.write("progress/plan.json", b"{}")
    with pytest.raises(FileNotFoundError, match="incomplete"):
        read_manifest(whole)


def test_other_tools_read_shards_as_they_are(whole: Storage) -> None:
    import pyarrow.dataset as ds

    assert whole.local is not None
    table = ds.dataset(whole.local, format="parquet", exclude_invalid_files=True).to_table()
    assert table.num_rows == 12
    assert table["key"][0].as_py() == "cats/0 ü.png"
    datasets = pytest.importorskip("datasets", reason="needs the extra smalti[datasets]")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(whole.local / "*.parquet"), split="train", cache_dir=str(whole.local / ".cache")
    )
    assert loaded[0]["indices"] == row(0).indices.tolist()
    assert loaded[5]["mirrored"] is True


NO_THREADS = """
import os, sys
from pathlib import Path
from smalti.data import ParquetImages
from smalti.formats.token_shards import read_shard
import pyarrow.parquet

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
rows = read_shard(Path(sys.argv[1]).read_bytes())
images = ParquetImages([sys.argv[2]])
print(len(rows), images.fetch(0).caption, threads() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux lists them")
def test_parquet_is_read_without_threads_that_could_outlive_the_process(
    tmp_path: Path, clean: CleanInterpreter
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "shard").write_bytes(write_shard([row(i) for i in range(3)], 300))
    pq.write_table(pa.table({"image": [b"\x89PNG"], "caption": ["one"]}), tmp_path / "images.parquet")
    done = clean.run("-c", NO_THREADS, tmp_path / "shard", tmp_path / "images.parquet")
    assert done.stdout.split() == ["3", "one", "0"], done.stderr


def test_verify_ends_with_its_own_exit_code(whole: Storage) -> None:
    """Arrow's threads ended a third of the runs with SIGABRT; the test before looks for their cause."""
    command = [sys.executable, "-m", "smalti.cli", "tokens", "verify", str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{whole}: no problems found\n", "")
