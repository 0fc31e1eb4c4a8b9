"""`benchmarks/gpu.py` without a GPU: its functions run on the CPU, and its document invents no figure."""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    """The script as a module; its neighbours have common names, which go again."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield import_module("gpu")
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if (FOLDER / f"{name}.py").exists():
                del sys.modules[name]


@pytest.fixture(autouse=True)
def short(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WARM_UP": 0, "TIMES": 1, "ROUNDS": 1}.items():
        monkeypatch.setattr(gpu, name, value)


def test_search_is_measured_and_compared(gpu: ModuleType) -> None:
    (row,) = gpu.search_rows("cpu", [(64, 16, 4)])
    assert row["same codes"] == 1
    assert row["torch / smalti"] > 0


def test_steps_and_encodings_are_measured(gpu: ModuleType) -> None:
    (row,) = gpu.train_rows("cpu", [("simple", 8, 2)], ["fp32"])
    assert (row["batch"], row["format"]) == (2, "fp32")
    assert min(row["encode, images/s"], row["train, images/s"]) > 0


def test_sampling_is_measured(gpu: ModuleType) -> None:
    (row,) = gpu.sample_rows("cpu", [("next-scale-small", "multi-scale", 1)])
    assert row["images/s"] == pytest.approx(1 / row["s"], rel=0.1)
    assert row["tokens"] == 130


def test_all_limits_stay_under_eight_minutes(gpu: ModuleType) -> None:
    assert sum(seconds for _, seconds in gpu.PARTS.values()) < 8 * 60


def test_the_document_says_what_was_measured_and_no_more(gpu: ModuleType) -> None:
    path = FOLDER / "gpu.json"
    result = json.loads(path.read_text()) if path.exists() else None
    assert path.with_suffix(".md").read_text() == gpu.document(result)
    part = {"search": ([{"N": 1, "torch / smalti": 2.0}], ""), "train": ([], "Ended at its limit of 1 s.")}
    facts = {"date": "2026-01-01", "machine": "a GPU", "versions": {"torch": "2"}}
    document = gpu.document({"facts": facts, "parts": part})
    assert "| N | torch / smalti |\n|---:|---:|\n| 1 | 2.0 |\n\n## train\n\nNo result.\n\nEnded" in document
