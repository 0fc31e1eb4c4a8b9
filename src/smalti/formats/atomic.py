"""Writing that is all or nothing: a new file or folder gets its name only when it is complete.

`replace_file` and `replace_folder` hand out a temporary path in the same folder (hidden: its name begins with a dot and
ends in `.tmp` and the suffix), flush what was written there to the disk, and only then move it to the wanted name. An
error, Ctrl-C included, removes the temporary path and leaves what was there before. Whoever writes there, and however
private its own temporary files are, a new file ends with the permissions that any new file gets (`umask`).

What a kill or a power cut can leave behind:

- before the move: the old file or folder untouched, and a hidden temporary one to delete;
- `replace_file`, and `replace_folder` where nothing was: the move is one system call, there is nothing in between (a
  file that is moved to a free name may for a moment have both names);
- `replace_folder` over an existing folder: on Linux the two swap names in one system call, so that one complete folder
  is always there; a kill right after it leaves the old one under the hidden name. Other systems, and file systems that
  cannot swap, need two moves: a kill between them leaves both folders complete, but both under hidden names.
"""

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from stat import S_IMODE

__all__ = ["check_replaceable", "remove", "replace_file", "replace_folder"]

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux's renameat2(2)."""
CANNOT_SWAP = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
CANNOT_LINK = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def replace_file(path: str | Path, force: bool = False) -> Iterator[Path]:
    """Write a file under a temporary name and rename it to `path` when the block ends without an error.

    >>> with replace_file("tokens.bin") as temporary:
    ...     temporary.write_bytes(b"...")

    Args:
        path: where the file shall be. Its folder must exist. A link is followed: the file it leads to is replaced.
        force: replace an existing file, keeping its permissions.

    Yields:
        The temporary path; the block must create a file there.

    Raises:
        FileExistsError: `path` exists and `force` is off (also if it came to exist meanwhile), or is no regular file.
        FileNotFoundError: the folder of `path` does not exist.
    """
    target = check_replaceable(path, force)
    temporary = _temporary(target)
    try:
        mode = _usual_mode(temporary)
        yield temporary
        _flush_file(temporary)
        temporary.chmod(S_IMODE(target.stat().st_mode) if force and target.exists() else mode)
        if force:
            temporary.replace(target)
        else:
            _move_where_nothing_is(temporary, target)
        _flush_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: str | Path, force: bool = False) -> Iterator[Path]:
    """Fill a folder under a temporary name and rename it to `path` when the block ends without an error.

    Args:
        path: where the folder shall be. The folder around it must exist. A link is followed.
        force: replace an existing folder; everything in the old one is deleted.

    Yields:
        The temporary folder, empty.

    Raises:
        FileExistsError: `path` exists and `force` is off, or is no folder.
        FileNotFoundError: the folder around `path` does not exist.
    """
    target = check_replaceable(path, force, folder=True)
    temporary = _temporary(target)
    temporary.mkdir()
    try:
        mode = _usual_mode(temporary / "new")
        yield temporary
        for folder, _, files in os.walk(temporary):
            for file in (Path(folder, name) for name in files):
                if file.is_file() and not file.is_symlink():
                    _flush_file(file)
                    file.chmod(mode)
            _flush_folder(Path(folder))
        check_replaceable(target, force, folder=True)
        if target.exists():
            _swap(temporary, target)  # from here on, `temporary` is the old folder
        else:
            temporary.rename(target)
        _flush_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: str | Path, force: bool, *, folder: bool = False) -> Path:
    """Refuse a target that may not be written, before the work that leads to it.

    Args:
        path: where a file, or with `folder` a folder, shall be.
        force: an existing one of the same kind may be replaced.
        folder: a folder is meant.

    Returns:
        The path with all links followed.

    Raises:
        FileExistsError, FileNotFoundError: as `replace_file` and `replace_folder` say.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    if target.exists():
        if not (target.is_dir() if folder else target.is_file()):
            raise FileExistsError(f"{path} exists and is no {'folder' if folder else 'regular file'}")
        if not force:
            raise FileExistsError(f"{path} already exists; choose another name, or --force to replace it")
    elif not target.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {target.parent}")
    return target


def remove(path: Path) -> None:
    """Delete a file, a link (not what it leads to), or a folder with all that is in it; nothing where nothing is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _temporary(target: Path) -> Path:
    """A fresh hidden name beside the target, with its suffix, since some writers go by that."""
    return target.with_name(f".{target.stem[:32]}.{token_hex(4)}.tmp{target.suffix[:16]}")


def _usual_mode(free: Path) -> int:
    """The permissions of a new file at a free path. Asking for the umask itself would change it for all threads."""
    free.touch()
    mode = S_IMODE(free.stat().st_mode)
    free.unlink()
    return mode


def _move_where_nothing_is(temporary: Path, target: Path) -> None:
    """Give the file its name unless the name was taken meanwhile: linking, unlike renaming, never replaces."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        check_replaceable(target, force=False)
        raise
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        check_replaceable(target, force=False)  # a file system without links: look, then rename
        temporary.replace(target)


def _swap(temporary: Path, target: Path) -> None:
    """Exchange the names of two folders: in one system call where there is one, else in three moves."""
    if _exchange(temporary, target):
        return
    aside = _temporary(target)
    target.rename(aside)
    try:
        temporary.rename(target)
    finally:  # where the new one did not get there, the old one goes back
        aside.rename(temporary if target.exists() else target)


def _exchange(one: Path, other: Path) -> bool:
    """Linux's atomic exchange, which Python does not offer by itself. False where the system cannot do it."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in CANNOT_SWAP:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _flush_file(path: Path) -> None:
    _flush(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def _flush_folder(path: Path) -> None:
    """Make names durable. Windows has no such thing."""
    if os.name != "nt":
        _flush(path, os.O_RDONLY)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
