"""Settings of the process: made by the command line alone, and given up where the system or the user says so."""

import gc
import os
import subprocess
import sys

import pytest

from smalti import cli
from smalti.cli import process_settings


class Library:
    """A C library that remembers calls of mallopt."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return 1


def calls(monkeypatch: pytest.MonkeyPatch, library: object, platform: str = "linux", **environment: str) -> list:
    monkeypatch.setattr(process_settings.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(process_settings.sys, "platform", platform)
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    process_settings.keep_freed_memory()
    return getattr(library, "calls", [])


def test_freed_memory_is_kept_where_glibc_can(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calls(monkeypatch, Library()) == [(-1, 2**30), (-3, 2**30)]


def test_other_systems_libraries_and_choices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calls(monkeypatch, object()) == []
    assert calls(monkeypatch, Library(), "darwin") == []
    assert calls(monkeypatch, Library(), MALLOC_TRIM_THRESHOLD_="131072") == []


@pytest.mark.parametrize(("chosen", "expected"), [({}, "1000"), ({"OMP_WAIT_POLICY": "active"}, None)])
def test_waiting_threads_sleep_unless_the_user_chose(chosen, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    process_settings.sleep_when_waiting()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    os.environ.pop("GOMP_SPINCOUNT", None)


def test_garbage_collection_is_paused_for_imports_alone() -> None:
    process_settings.resume_garbage_collection()  # was not paused: nothing is frozen
    frozen = gc.get_freeze_count()
    assert gc.isenabled()
    process_settings.pause_garbage_collection()
    assert not gc.isenabled()
    process_settings.resume_garbage_collection()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_a_command_collects_garbage_once_its_modules_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["smalti", "decode"])
    monkeypatch.setattr(process_settings, "keep_freed_memory", lambda: None)
    for name in ("PYTHONSAFEPATH", "GOMP_SPINCOUNT"):  # `main` sets both
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("smalti.cli.decode.run", lambda arguments: gc.isenabled() and not gc.unfreeze())
    assert cli.main() == 1  # True


def test_an_import_changes_nothing() -> None:
    code = "import os, smalti.cli; print('GOMP_SPINCOUNT' in os.environ)"
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
