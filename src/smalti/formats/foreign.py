"""What a file is that its name says is something else: a web page, a Git LFS pointer, an archive.

Most "damaged" weights are none: the download saved the page about the file, or the repository was cloned without
git-lfs. Who is told so knows what to do.
"""

from pathlib import Path

HEAD = 512
"""Bytes that tell."""
BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file it stands for: run git lfs pull, or download the file",
    b"<": "a web page or XML, not a file of weights: download the file itself, not the page about it",
    b"{": "JSON text, not a file of weights",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"7z\xbc\xaf": "a 7-Zip archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"\x89HDF": "an HDF5 file, as Keras writes it",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file, as llama.cpp reads it",
}
"""First bytes → what the file is."""


def foreign(path: Path) -> str | None:
    """What a file is, if it is plainly no file of weights; None if it may be one."""
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
    """Whether a file begins as safetensors do: the length of a JSON table, then the table."""
    with path.open("rb") as opened:
        head = opened.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
