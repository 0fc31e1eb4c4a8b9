"""Two trainings never write into one folder, and a process that is gone locks nobody out."""

import subprocess
import sys
from pathlib import Path

import pytest

from smalti.training import run_folder
from smalti.training.run_folder import FolderLock

pytest.importorskip("fcntl", reason="this system has no flock")

HOLD = """
import pathlib, sys
from smalti.training.run_folder import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lock = FolderLock(tmp_path)
        with pytest.raises(FileExistsError, match=f"out: process {holder.pid} trains in "):
            lock.acquire()
        holder.kill()
    assert (tmp_path / ".lock").read_text() == str(holder.pid)
    lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_was_deleted_while_it_was_opened_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the former holder may release, and a third may begin with a new file."""
    first, second, third = (FolderLock(tmp_path) for _ in range(3))
    first.acquire()
    flock = run_folder.fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(run_folder.fcntl, "flock", flock)
        first.release()
        third.acquire()
        flock(descriptor, operation)

    monkeypatch.setattr(run_folder.fcntl, "flock", late)
    with pytest.raises(FileExistsError, match="trains in"):
        second.acquire()
    third.release()
    second.acquire()
    second.release()


def test_a_file_system_without_locks_lets_everybody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_folder.fcntl, "flock", refuse)
    for lock in (FolderLock(tmp_path), FolderLock(tmp_path)):
        lock.acquire()
        lock.release()
