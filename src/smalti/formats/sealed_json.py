"""JSON tables that say what they are and carry a checksum of themselves, so that an altered byte is seen when read.

A table begins with its format and version and ends with the SHA-256 of all the rest. `seal` writes it, `open_sealed`
reads it. Text that is no Unicode survives (a file name may hold any bytes): lone surrogates become JSON's escapes.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["open_sealed", "seal"]


def seal(kind: str, version: int, content: Mapping[str, Any]) -> bytes:
    """A table of plain JSON types as the bytes of a file.

    Args:
        kind: the format's name.
        version: the format's version.
        content: the table; not with the keys format, version and checksum.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot say.
    """
    table = {"format": kind, "version": version, **content}
    table = json.loads(json.dumps(table, allow_nan=False))  # as it will be read: a tuple is a list by then
    text = json.dumps({**table, "checksum": _checksum(table)}, indent=1, ensure_ascii=False)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def open_sealed(data: bytes, kind: str, version: int, unsealed: tuple[int, ...] = ()) -> tuple[int, dict[str, Any]]:
    """The version that was found, and the content that `seal` was given.

    Args:
        data: the bytes of a file.
        kind: the expected format.
        version: its version.
        unsealed: older versions, which had no checksum yet and are read too.

    Raises:
        ValueError: not a JSON table, of another format or version, or altered.
    """
    table = json.loads(data)
    if not isinstance(table, dict):
        raise ValueError(f"got {type(table).__name__}, expected a table")
    found = (table.get("format"), table.get("version"))
    if found[0] != kind or found[1] not in (version, *unsealed):
        raise ValueError(f"got {found[0]} version {found[1]}, this is for {kind} version {version}")
    checksum = table.pop("checksum", None)
    if checksum != (None if found[1] in unsealed else _checksum(table)):
        raise ValueError("its checksum differs: it was altered")
    return found[1], {key: value for key, value in table.items() if key not in ("format", "version")}


def _checksum(table: Mapping[str, Any]) -> str:
    text = json.dumps(table, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
