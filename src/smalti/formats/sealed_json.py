"""JSON tables with format, version and checksum, so that reading detects an altered byte.

A table begins with its format and version and ends with the SHA-256 of everything else. `seal` writes it, `open_sealed`
reads it. Text that is not valid Unicode is preserved (a file name may hold any bytes): lone surrogates are escaped.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def seal(kind: str, version: int, content: Mapping[str, Any]) -> bytes:
    """Serialize a table of plain JSON types.

    Args:
        kind: name of the format.
        version: version of the format.
        content: the table. The keys format, version and checksum are reserved.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
    """
    table = {"format": kind, "version": version, **content}
    table = json.loads(json.dumps(table, allow_nan=False))  # the table as it will be read: tuples become lists
    text = json.dumps({**table, "checksum": _checksum(table)}, indent=1, ensure_ascii=False)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def open_sealed(data: bytes, kind: str, version: int, unsealed: tuple[int, ...] = ()) -> tuple[int, dict[str, Any]]:
    """Inverse of `seal`: the version found, and the content.

    Args:
        data: the bytes of a file.
        kind: the expected format.
        version: the expected version.
        unsealed: older versions without a checksum, which are accepted too.

    Raises:
        ValueError: not a JSON table, another format or version, or altered.
    """
    table = json.loads(data)
    if not isinstance(table, dict):
        raise ValueError(f"got {type(table).__name__}, expected a table")
    found = (table.get("format"), table.get("version"))
    if found[0] != kind or found[1] not in (version, *unsealed):
        raise ValueError(f"got {found[0]} version {found[1]}, expected {kind} version {version}")
    checksum = table.pop("checksum", None)
    if checksum != (None if found[1] in unsealed else _checksum(table)):
        raise ValueError("checksum differs: the file was altered")
    return found[1], {key: value for key, value in table.items() if key not in ("format", "version")}


def _checksum(table: Mapping[str, Any]) -> str:
    text = json.dumps(table, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
