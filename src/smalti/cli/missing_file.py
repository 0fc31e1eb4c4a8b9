"""Refuses a mistyped file name at once, before the seconds that importing torch takes.

This check covers only the certain case: a word that by its position is a file to read, and does not exist. Cases that
need the whole parser (`parsing.py`) or the tokenizer are left to the command, which reports the same error later.
"""

import errno
import os
from math import inf
from pathlib import Path

WRITTEN = {"encode": 0, "decode": 1, "reconstruct": 1}
"""Verb -> how many of its last words name the output, if no option does."""
READ = {"encode": inf, "decode": 2, "reconstruct": 2}
"""Verb -> how many words at most name the input, including the tokenizer."""

OUT = {"-o", "--out"}
FLAGS = {"--force"}
"""Options of these verbs that need no value."""
OTHERS = {"--device", "--max_pixels", "--max-pixels", "--coding", "--codec"}
"""Further options that do not change the meaning of the words, unlike `--images` or a recipe."""


def refuse_missing_file(verb: str, arguments: list[str]) -> None:
    """Refuse the arguments of a verb if an input file does not exist.

    Raises:
        FileNotFoundError: with the name of the file.
    """
    if verb not in WRITTEN:
        return
    words, options = _sorted(arguments)
    if not options <= OUT | FLAGS | OTHERS:
        return
    read = words if options & OUT else words[: len(words) - WRITTEN[verb]]
    if len(read) > READ[verb]:
        return
    for word in read[1:] or read:  # the first of several may name the tokenizer
        if Path(word).suffix and not Path(word).exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), word)


def _sorted(arguments: list[str]) -> tuple[list[str], set[str]]:
    """The words among the arguments, and the names of the options without their values."""
    words: list[str] = []
    options: set[str] = set()
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            return words + left, options
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        name, given, _ = word.partition("=")
        options.add(name)
        if not given and (name not in FLAGS or left[:1] in (["true"], ["false"])):
            left = left[1:]
    return words, options
