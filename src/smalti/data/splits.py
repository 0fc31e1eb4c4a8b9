"""Which files of a folder belong to which split, by words in their names: one rule for pictures, tar shards and tables.

Where every file says by its name, or by that of the folder it lies in, to which split it belongs, a folder stands for
its training split, and FOLDER:test, FOLDER:val for the others. Otherwise it stands for all its files.
"""

from collections.abc import Collection

__all__ = ["SPLIT_WORDS", "choose_split"]

SPLIT_WORDS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}
"""Words in names, and the split that they mean."""

ALL = ""
"""Stands for the files that say nothing, and for taking all."""


def choose_split(data: str, splits: Collection[str], split: str) -> str:
    """The split to take, `ALL` for all files.

    Args:
        data: what an error calls the folder.
        splits: those that files say they belong to; `ALL` is among them if some say nothing.
        split: what was asked for; "" if nothing was.

    Raises:
        ValueError: no file belongs to it.
    """
    if ALL in splits and not split:
        return ALL
    wanted = SPLIT_WORDS.get(split or "train", split)
    if wanted not in splits:
        there = ", ".join(sorted(filter(None, splits))) or "none"
        raise ValueError(f"{data}: no files of split {wanted!r} by their names; splits here: {there}")
    return wanted
