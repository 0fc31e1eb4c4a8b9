"""A folder that holds files whole or not at all, on this machine or in an object store.

A path means this machine, and writing goes through `replace_file`; a URL (s3://, gs://, hf://, memory://) goes through
fsspec, whose stores give an object its name only when all of it has arrived.
"""

from pathlib import Path
from typing import Any, cast

from smalti.formats.atomic import replace_file

__all__ = ["Storage"]


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
        """A whole file.

        Raises:
            FileNotFoundError: there is none of this name.
        """
        return cast(bytes, self._fs.cat_file(self._at(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a file, replacing one of the same name; it is never there in part."""
        if self.local is None:
            self._fs.pipe_file(self._at(name), data)
            return
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, force=True) as temporary:
            temporary.write_bytes(data)

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of this name; without a name, whether the folder itself exists."""
        return bool(self._fs.exists(self._at(name)))

    def names(self, folder: str = "") -> list[str]:
        """Names of all files below a folder, relative to the root, in alphabetical order; hidden ones are left out."""
        if not self.exists(folder):
            return []
        start = len(self._path.rstrip("/")) + 1
        found = (path[start:] for path in self._fs.find(self._at(folder)))
        return sorted(name for name in found if not any(part.startswith(".") for part in name.split("/")))

    def remove(self, name: str) -> None:
        """Delete a file or a folder with all that is in it; nothing happens where there is none."""
        if self.exists(name):
            self._fs.rm(self._at(name), recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}" if name else self._path


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
