"""A local folder or an object store. Writing a file is atomic.

A path is local, and writing uses `replace_file`. A URL (s3://, gs://, hf://, memory://) uses fsspec, whose stores name
an object only when all of it has arrived.
"""

from pathlib import Path
from typing import Any, cast

from smalti.formats.atomic import replace_file


class Storage:
    """Files by their names relative to a root."""

    def __init__(self, root: str | Path):
        """
        Args:
            root: a path, or a URL that fsspec knows.

        Raises:
            ValueError: a protocol that fsspec does not know, or whose package is not installed.
        """
        from fsspec.core import url_to_fs  # a slow import, and only needed here

        self.root = str(root)
        try:
            self._fs, self._path = url_to_fs(self.root)
        except (ValueError, ImportError) as error:
            raise ValueError(f"storage: {self.root} cannot be used ({error})") from error
        self.local = Path(self._path) if "file" in _protocols(self._fs) else None

    def __str__(self) -> str:
        return self.root

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: no file of this name exists.
        """
        return cast(bytes, self._fs.cat_file(self._at(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically. An existing file of this name is replaced."""
        if self.local is None:
            self._fs.pipe_file(self._at(name), data)
            return
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, force=True) as temporary:
            temporary.write_bytes(data)

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of this name exists; without a name, whether the root exists."""
        return bool(self._fs.exists(self._at(name)))

    def stamp(self, name: str) -> list[int | str]:
        """Size and time of modification of a file, which tell that it was written again without reading it.

        Raises:
            FileNotFoundError: no file of this name exists.
        """
        if self.local is not None:
            status = (self.local / name).stat()
            return [status.st_size, status.st_mtime_ns]
        try:
            modified = str(self._fs.modified(self._at(name)))
        except NotImplementedError:  # a store without times
            modified = ""
        return [self._fs.size(self._at(name)), modified]

    def names(self, folder: str = "") -> list[str]:
        """Names of all files below a folder, relative to the root, sorted. Hidden files are left out."""
        if not self.exists(folder):
            return []
        start = len(self._path.rstrip("/")) + 1
        found = (path[start:] for path in self._fs.find(self._at(folder)))
        return sorted(name for name in found if not any(part.startswith(".") for part in name.split("/")))

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with its content. Do nothing if it does not exist."""
        if self.exists(name):
            self._fs.rm(self._at(name), recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}" if name else self._path


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
