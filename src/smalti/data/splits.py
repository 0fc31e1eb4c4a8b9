"""Assigns the files of a folder to splits by words in their names: one rule for pictures, tar shards and tables.

If the name of every file, or of its folder, contains a split, then FOLDER means the training split, and FOLDER:test and
FOLDER:val the others. Otherwise FOLDER means all its files.
"""

from collections.abc import Collection

SPLIT_WORDS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}
"""Words in names, and their splits."""

ALL = ""
"""Marks files whose names contain no split, and the choice of all files."""


def choose_split(data: str, splits: Collection[str], split: str) -> str:
    """The split to take, `ALL` for all files.

    Args:
        data: name of the folder in errors.
        splits: splits found in the names; includes `ALL` if some names contain none.
        split: the requested split; "" if none was requested.

    Raises:
        ValueError: no file belongs to the split.
    """
    if ALL in splits and not split:
        return ALL
    wanted = SPLIT_WORDS.get(split or "train", split)
    if wanted not in splits:
        there = ", ".join(sorted(filter(None, splits))) or "none"
        raise ValueError(f"{data}: split: got {wanted!r}, expected one that file names contain: {there}")
    return wanted
