"""One training at a time in a run folder: a lock that the system takes back when its holder ends, however it ends.

RUN/.lock is locked by flock(2) and names the process. One that a kill left behind keeps nobody out. Where there is no
flock, on Windows and on some network file systems, every process comes in.
"""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """The lock of one folder, held or not by this process."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / ".lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Lock the folder, which must exist; nothing happens where this object holds the lock already.

        Raises:
            FileExistsError: somebody else holds it; names the process.
        """
        while self._descriptor is None and fcntl is not None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 20).decode() or "of unknown number"
                os.close(descriptor)
                raise FileExistsError(
                    f"out: process {holder} trains in {self.folder}; wait for its end or choose another name"
                ) from None
            except OSError:  # a file system without locks
                os.close(descriptor)
                return
            if self._is_named(descriptor):
                self._descriptor = descriptor
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
            else:  # the former holder has deleted it since it was opened
                os.close(descriptor)

    def release(self) -> None:
        """Delete the file and let others in; nothing happens where the lock is not held."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _is_named(self, descriptor: int) -> bool:
        """Whether the open file is the one that has the name."""
        return self.path.exists() and os.path.samestat(os.fstat(descriptor), self.path.stat())
