"""What all tests share: the seed, the golden folder, hypothesis without a clock, and a way to see what users see."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import jaxtyping
import pytest
import torch
from clean_interpreter import CleanInterpreter
from hypothesis import settings
from small_box import fill_box

import smalti.zoo.box

ROOT = Path(__file__).resolve().parent.parent

# No deadline (nothing here is timed) and no randomness between two runs.
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")


def pytest_collection_finish() -> None:
    """Take what all tests share out of garbage collection, which would walk through it a thousand times."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and thousands of files wait long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of golden vectors: `../shared/golden` beside the repository, or where SMALTI_GOLDEN says."""
    folder = Path(os.environ.get("SMALTI_GOLDEN", ROOT.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder}: set SMALTI_GOLDEN to their folder")
    return folder


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanInterpreter]:
    """Runs programs without the type checks of the tests; started when first used."""
    interpreter = CleanInterpreter(tmp_path_factory.mktemp("clean"))
    yield interpreter
    interpreter.close()


@pytest.fixture(scope="session")
def tiny_box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of small tokenizers as the box has them, made by their own recipe."""
    return fill_box(tmp_path_factory.mktemp("box"))


@pytest.fixture
def box(tiny_box: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The box of this installation, filled with small tokenizers."""
    monkeypatch.setattr(smalti.zoo.box, "BOX", tiny_box)
    return tiny_box


@pytest.fixture(autouse=True)
def _types_of_every_fourth_case(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check types in every test, but only in a quarter of the cases of a parametrized one.

    A checked call takes about 0.2 ms longer: in the large products of cases that is more than the work itself.
    """
    many = hasattr(request.node, "callspec")
    jaxtyping.config.update("jaxtyping_disable", many and crc32(request.node.nodeid.encode()) % 4 != 0)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def unchecked(_types_of_every_fourth_case: None) -> None:
    """Switch the run-time type check off, so that a wrong argument meets our own checks, as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
