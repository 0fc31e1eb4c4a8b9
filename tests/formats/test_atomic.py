"""Writing that is all or nothing: errors, kills, races, links, and what must not be overwritten."""

import os
import sys
from pathlib import Path

import pytest

from smalti.formats import atomic
from smalti.formats.atomic import check_replaceable, replace_file, replace_folder


def tree(folder):
    """Every file below a folder and its text; folders are None."""
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else None for path in folder.rglob("*")}


def fill(folder, text):
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text(text)
    (folder / text).write_text(text)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "photo.png"
    with replace_file(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        assert temporary.name.startswith(".")
        temporary.write_text("new")
        assert not path.exists()
    assert tree(tmp_path) == {"photo.png": "new"}


def test_an_existing_file_is_replaced_only_by_force(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(FileExistsError, match=r"file already exists.*force=True"), replace_file(path):
        pytest.fail("the block must not run")
    with replace_file(path, force=True) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert tree(tmp_path) == {"file": "new"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "old"])
def test_an_error_leaves_what_was_there(tmp_path, error, before):
    path = tmp_path / "file"
    if before:
        path.write_text(before)

    def fail():
        with replace_file(path, force=True) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert tree(tmp_path) == ({"file": "old"} if before else {})


def test_a_file_that_came_meanwhile_is_kept(tmp_path):
    path = tmp_path / "file"

    def race():
        with replace_file(path) as temporary:
            temporary.write_text("mine")
            path.write_text("theirs")

    with pytest.raises(FileExistsError, match="already exists"):
        race()
    assert tree(tmp_path) == {"file": "theirs"}


def test_a_file_system_without_links_is_written_to(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    test_a_file_appears_when_the_block_ends(tmp_path)
    (tmp_path / "photo.png").unlink()
    test_a_file_that_came_meanwhile_is_kept(tmp_path)


def test_permissions_are_the_usual_ones_and_are_kept(tmp_path):
    usual = tmp_path / "usual"
    usual.touch()
    path = tmp_path / "file"
    with replace_file(path) as temporary:
        temporary.touch()
    assert path.stat().st_mode == usual.stat().st_mode
    path.chmod(0o600)
    with replace_file(path, force=True) as temporary:
        temporary.touch()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_new_files_get_the_permissions_of_umask_however_private_their_writer_makes_them(tmp_path, umask):
    def write_privately(path):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:  # noqa: PTH123
            file.write("new")

    with replace_file(tmp_path / "file") as temporary:
        write_privately(temporary)
    with replace_folder(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir()
        for path in (temporary / "file", temporary / "inner" / "file"):
            write_privately(path)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in tree(tmp_path)}
    assert modes == {name: (0o666 if name.endswith("file") else 0o777) & ~umask for name in modes}


def test_links_stay_links(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with replace_file(tmp_path / "link", force=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_only_files_are_replaced_by_files_and_folders_by_folders(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, folder in (("folder", False), ("pipe", False), ("file", True), ("pipe", True)):
        with pytest.raises(FileExistsError, match=f"is not a {'folder' if folder else 'regular file'}"):
            check_replaceable(tmp_path / name, force=True, folder=folder)
    with pytest.raises(FileExistsError, match="regular file"):
        check_replaceable("/dev/null", force=True)


@pytest.mark.parametrize("replace", [replace_file, replace_folder])
def test_a_missing_folder_is_named_before_the_work(tmp_path, replace):
    with (
        pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path / 'none'}"),
        replace(tmp_path / "none/x"),
    ):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("name", ["猫" * 80 + ".png", "n" * 255, "." + "n" * 254, "a." + "n" * 250])
def test_long_names_have_temporary_names_too(tmp_path, name):
    with replace_file(tmp_path / name) as temporary:
        temporary.write_text("new")
    assert tree(tmp_path) == {name: "new"}


# ---- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with replace_folder(tmp_path / "run") as temporary:
        fill(temporary, "new")
        (temporary / "inner" / "file").chmod(0o400)
        (temporary / "dangling").symlink_to("nowhere")
        assert not (tmp_path / "run").exists()
    assert (tmp_path / "run/dangling").is_symlink()
    (tmp_path / "run/dangling").unlink()
    assert tree(tmp_path) == {"run": None, "run/inner": None, "run/inner/file": "new", "run/new": "new"}


@pytest.mark.parametrize("can_swap", [True, False])
def test_an_existing_folder_is_replaced_as_a_whole_and_only_by_force(tmp_path, can_swap, monkeypatch):
    if not can_swap:
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    fill(tmp_path / "run", "old")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="already exists"), replace_folder(tmp_path / "run"):
        pytest.fail("the block must not run")
    assert tree(tmp_path) == before
    with replace_folder(tmp_path / "run", force=True) as temporary:
        fill(temporary, "new")
        assert {name: text for name, text in tree(tmp_path).items() if not name.startswith(".")} == before
    assert tree(tmp_path) == {"run": None, "run/inner": None, "run/inner/file": "new", "run/new": "new"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_folder(tmp_path, error):
    fill(tmp_path / "run", "old")
    before = tree(tmp_path)

    def fail():
        with replace_folder(tmp_path / "run", force=True) as temporary:
            fill(temporary, "half")
            raise error

    with pytest.raises(error):
        fail()
    assert tree(tmp_path) == before


def test_a_failing_move_puts_the_old_folder_back(tmp_path, monkeypatch):
    """Without the swap, when the second of the three moves fails."""
    monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    fill(tmp_path / "run", "old")
    before = tree(tmp_path)

    def lose():
        with replace_folder(tmp_path / "run", force=True) as temporary:
            monkeypatch.setattr(atomic, "_flush_folder", lambda _: None)
            temporary.rmdir()

    with pytest.raises(FileNotFoundError):
        lose()
    assert tree(tmp_path) == before


def test_where_folders_can_swap_names_nothing_else_is_moved(tmp_path, monkeypatch):
    """So that there is no moment without a folder of that name."""
    for name in ("one", "other", "run"):
        (tmp_path / name).mkdir()
    if not atomic.exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this system or file system cannot swap")

    def refuse(*_):
        raise AssertionError("a move")

    monkeypatch.setattr(Path, "rename", refuse)
    with replace_folder(tmp_path / "run", force=True) as temporary:
        (temporary / "new").touch()
    assert (tmp_path / "run/new").exists()


def test_a_folder_that_came_meanwhile_is_kept(tmp_path):
    def race():
        with replace_folder(tmp_path / "run") as temporary:
            fill(temporary, "mine")
            fill(tmp_path / "run", "theirs")

    with pytest.raises(FileExistsError, match="already exists"):
        race()
    assert tree(tmp_path) == {"run": None, "run/inner": None, "run/inner/file": "theirs", "run/theirs": "theirs"}


# ---- kills ----------------------------------------------------------------------------------------------------------

REWRITE_UNTIL_KILLED = """
import itertools, os, signal, sys, time
from pathlib import Path
from smalti.formats.atomic import replace_file, replace_folder

def rewrite(root):
    for n in itertools.count():
        with replace_folder(root / "run", force=True) as temporary:
            for name in "abc":
                (temporary / name).write_text(str(n) * 1000)
        with replace_file(root / "file", force=True) as temporary:
            temporary.write_text(str(n) * 1000)
        os.write(written, b"%d\\n" % n)

read, written = os.pipe()
if not (process := os.fork()):
    rewrite(Path(sys.argv[1]))
os.close(written)
with os.fdopen(read) as lines:
    print(lines.readline(), end="")
    time.sleep(float(sys.argv[2]))
    os.kill(process, signal.SIGKILL)
    print(lines.read(), end="")
os.waitpid(process, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere two folders cannot swap names at once")
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.007, 0.013])
def test_a_kill_leaves_one_whole_folder_and_one_whole_file(tmp_path, clean, delay):
    done = clean.run("-c", REWRITE_UNTIL_KILLED, tmp_path, delay)
    assert done.returncode == 0, done.stderr
    last = int(done.stdout.split()[-1])
    possible = {str(n) * 1000 for n in (last, last + 1)}
    assert {(tmp_path / "run" / name).read_text() for name in "abc"} in [{text} for text in possible]
    assert (tmp_path / "file").read_text() in possible
    leftovers = {path.name for path in tmp_path.iterdir()} - {"run", "file"}
    assert all(name.startswith(".") and ".tmp" in name for name in leftovers)
