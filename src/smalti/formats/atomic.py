"""Atomic writing: a new file or folder gets its name only when it is complete.

`replace_file` and `replace_folder` yield a temporary path in the same folder (hidden: its name begins with a dot and
ends in `.tmp` and the suffix). They flush its content to the disk and then rename it to the target name. An error,
Ctrl-C included, removes the temporary path and keeps the old file. A new file always gets the default permissions
(`umask`), also if the writer creates its own files with others.

State after a kill or a power cut:

- before the rename: the old file or folder is unchanged; a hidden temporary one remains and can be deleted.
- `replace_file`, and `replace_folder` without an old folder: the rename is one system call, so there is no state in
  between. (A file moved to a free name may have both names for a moment.)
- `replace_folder` over an existing folder: on Linux the two folders swap names in one system call, so a complete folder
  always exists. A kill right after the swap leaves the old one under the hidden name. Other systems, and file systems
  without this call, need two renames. A kill between them leaves both folders complete, but under hidden names.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from stat import S_IMODE

from smalti.formats.exchange import exchange

CANNOT_LINK = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def replace_file(path: str | Path, force: bool = False) -> Iterator[Path]:
    """Write a file under a temporary name and rename it to `path` when the block ends without an error.

    >>> with replace_file("tokens.bin") as temporary:
    ...     temporary.write_bytes(b"...")

    Args:
        path: the target file. Its folder must exist. Links are followed: the file that they point to is replaced.
        force: replace an existing file and keep its permissions.

    Yields:
        The temporary path; the block must create a file there.

    Raises:
        FileExistsError: `path` exists and `force` is off (also if it was created meanwhile), or is not a regular file.
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
        path: the target folder. Its parent must exist. Links are followed.
        force: replace an existing folder and delete its old content.

    Yields:
        The temporary folder, empty.

    Raises:
        FileExistsError: `path` exists and `force` is off, or is not a folder.
        FileNotFoundError: the parent of `path` does not exist.
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
            _swap(temporary, target)  # from here on, `temporary` holds the old folder
        else:
            temporary.rename(target)
        _flush_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_no_input(out: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse an output that is one of the inputs, also through a link; force does not allow it.

    Raises:
        ValueError: it is.
    """
    for path in inputs:
        if Path(out).exists() and Path(path).exists() and Path(out).samefile(path):
            raise ValueError(f"out: got {out}, which is an input, expected another file")


def check_replaceable(path: str | Path, force: bool, *, folder: bool = False) -> Path:
    """Refuse a target that may not be written. Called before long work starts.

    Args:
        path: the target.
        force: an existing target of the same kind may be replaced.
        folder: the target is a folder, not a file.

    Returns:
        The path with all links resolved.

    Raises:
        FileExistsError, FileNotFoundError: as for `replace_file` and `replace_folder`.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    if target.exists():
        if not (target.is_dir() if folder else target.is_file()):
            raise FileExistsError(f"{path} exists and is not a {'folder' if folder else 'regular file'}")
        if not force:
            raise FileExistsError(f"{path} already exists; choose another name, or replace it with force=True")
    elif not target.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {target.parent}")
    return target


def remove(path: Path) -> None:
    """Delete a file, a link (not its target), or a folder with its content. Do nothing if the path does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _temporary(target: Path) -> Path:
    """A new hidden name beside the target. It keeps the suffix, because some writers choose the format by it."""
    return target.with_name(f".{target.stem[:32]}.{token_hex(4)}.tmp{target.suffix[:16]}")


def _usual_mode(free: Path) -> int:
    """The default permissions of a new file. Reading the umask directly would change it for all threads."""
    free.touch()
    mode = S_IMODE(free.stat().st_mode)
    free.unlink()
    return mode


def _move_where_nothing_is(temporary: Path, target: Path) -> None:
    """Give the file its name unless the name was taken meanwhile. A hard link, unlike a rename, never replaces."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        check_replaceable(target, force=False)
        raise
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        check_replaceable(target, force=False)  # a file system without hard links: check, then rename
        temporary.replace(target)


def _swap(temporary: Path, target: Path) -> None:
    """Exchange the names of two folders: in one system call if available, else in three renames."""
    if exchange(temporary, target):
        return
    aside = _temporary(target)
    target.rename(aside)
    try:
        temporary.rename(target)
    finally:  # if the new folder was not moved, the old one is moved back
        aside.rename(temporary if target.exists() else target)


def _flush_file(path: Path) -> None:
    _flush(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def _flush_folder(path: Path) -> None:
    """Make names durable. Windows has no equivalent."""
    if os.name != "nt":
        _flush(path, os.O_RDONLY)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
