"""Two paths swap their names in one system call.

Only Linux has such a call, and Python's standard library does not offer it; so it is called in the C library through
ctypes. Without it, `atomic.py` needs several renames.
"""

import ctypes
import errno
import os
import sys
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Constants of Linux's renameat2(2)."""
CANNOT_SWAP = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two files or folders; False, and nothing is changed, if the system or file system cannot."""
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
