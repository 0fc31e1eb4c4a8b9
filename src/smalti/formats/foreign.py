"""Recognizes files that are not weights in spite of their name: a web page, a Git LFS pointer, an archive.

Most "damaged" weights files have one of two causes: the download saved the web page about the file, or the repository
was cloned without git-lfs. The error message can then say what to do.
"""

from pathlib import Path

HEAD = 512
"""Number of bytes that are inspected."""
BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull, or download the file",
    b"<": "a web page or XML, not a weights file: download the file itself, not the page about it",
    b"{": "JSON text, not a weights file",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"7z\xbc\xaf": "a 7-Zip archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file, as llama.cpp reads them",
}
"""First bytes → description of the file."""


def foreign(path: Path) -> str | None:
    """Description of a file that is certainly not a weights file; None if it may be one."""
    with path.open("rb") as opened:
        head = opened.read(HEAD)
    if not head.strip(b"\0"):
        return "empty" if not head else None
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for beginning, what in BEGINNINGS.items():
        if start.startswith(beginning):
            return what
    return None


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like a safetensors file: the length of a JSON table, then the table."""
    with path.open("rb") as opened:
        head = opened.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
