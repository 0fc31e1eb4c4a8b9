"""Refuses a mistyped file name or a taken output folder at once, before the seconds that importing torch takes.

This check covers only certain cases: a word that by its position is a file or folder to read, and does not exist; the
run directory of a training, given as an option. Cases that need the whole parser (`parsing.py`) or the tokenizer are
left to the command, which reports the same error later.
"""

import errno
import os
from math import inf
from pathlib import Path

from smalti.checks import check_new_run

WRITTEN = {"encode": 0, "decode": 1, "reconstruct": 1}
"""Verb -> how many of its last words name the output, if no option does."""
READ = {"encode": inf, "decode": 2, "reconstruct": 2}
"""Verb -> how many words at most name the input, including the tokenizer."""
DATA = {"train": 1, "train-prior": 1, "tokenize": 2}
"""Verb -> how many words it takes at most; the last one is a folder to read, or names a data set."""
NAMES = {"embedded", "fashion-mnist", "photo-f8", "photo-pyramid"}
"""Data sets and tokenizers that are no folders here."""
MARKS = ":?*{"
"""A name with one of them may be that of a split, of several files, or a URL."""

OUT = {"-o", "--out"}
FLAGS = {
    "encode": {"--force"},
    "decode": {"--force"},
    "reconstruct": {"--force"},
    "train": {
        *("--force", "--resume", "--download", "--compile", "--input.flip"),
        *("--adversarial.spectral_norm", "--adversarial.augment_pairs", "--adversarial.adaptive_weight"),
    },
    "train-prior": {"--force", "--resume", "--gradient_checkpointing", "--sharded"},
    "tokenize": {"--force", "--mirrored", "--json"},
}
"""Verb -> options that need no value."""
UNSURE = {"-h", "--help", "--help_all", "--print_config", "--config", "--images", "--tokens", "--data", "--run"}
"""Options that end a command, or give what a word gives otherwise."""


def refuse_missing_file(verb: str, arguments: list[str]) -> None:
    """Refuse the arguments of a verb if its input does not exist, or its run directory is taken.

    Nothing is refused in a process of torchrun: the command prints one message for all of them.

    Raises:
        FileNotFoundError: with the name of the file or folder.
        FileExistsError: see `check_new_run`.
    """
    if verb not in FLAGS or "RANK" in os.environ:
        return
    words, options = _sorted(arguments, FLAGS[verb])
    if set(options) & UNSURE:
        return
    if verb in DATA:
        if len(words) <= DATA[verb]:
            _refuse_missing_data(words)
        if verb != "tokenize":
            _refuse_taken_run(options)
        return
    read = words if set(options) & OUT else words[: len(words) - WRITTEN[verb]]
    if len(read) > READ[verb]:
        return
    for word in read[1:] or read:  # the first of several may name the tokenizer
        if Path(word).suffix and not Path(word).exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), word)


def _refuse_missing_data(words: list[str]) -> None:
    for word in words[-1:]:
        if not (Path(word).exists() or word in NAMES or any(mark in word for mark in MARKS)):
            raise FileNotFoundError(f"{word}: no such file or folder")


def _refuse_taken_run(options: dict[str, str]) -> None:
    out = options.get("--out") or options.get("-o")
    if out and "--resume" not in options and options.get("--force") in (None, "", "true"):
        check_new_run(Path(out), force="--force" in options)


def _sorted(arguments: list[str], flags: set[str]) -> tuple[list[str], dict[str, str]]:
    """The words among the arguments, and the options with their values; hyphens in names as underscores."""
    words: list[str] = []
    options: dict[str, str] = {}
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            return words + left, options
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        name, given, value = word.partition("=")
        name = f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name
        if not given and left and (name not in flags or left[0] in ("true", "false")):
            value = left.pop(0)
        options[name] = value
    return words, options
