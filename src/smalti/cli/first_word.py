"""Decides whether the first word after a verb names the tokenizer, which is optional: `smalti encode [RUN] IMAGES...`.

The word names the tokenizer if it is a built-in name, a folder with a saved model or a checkpoint. It also does if
there are more words than the other arguments take or, where the other argument is any number of images, if the word is
not an image file. So a name on the hub counts as a tokenizer, and a mistyped folder gives the error of opening one.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from smalti.data.decode import IMAGE_SUFFIXES
from smalti.zoo import is_boxed, kind_of


def begins_with_tokenizer(words: Sequence[str], most: float) -> bool:
    """Whether the first of these words names a tokenizer.

    Args:
        words: all words after the verb that are not options.
        most: how many of them the arguments after the tokenizer take at most; inf for any number of images.

    Raises:
        ValueError: a built-in name that is also a file or folder here.
    """
    if not words:
        return False
    first = Path(words[0])
    if is_boxed(words[0]) and first.exists():
        raise ValueError(f"{first}: is a built-in tokenizer and a file or folder here; write ./{first} for the latter")
    if kind_of(words[0]) is not None:
        return True
    if most < math.inf or len(words) == 1:
        return len(words) > most
    return not (first.is_file() or first.suffix.lower() in IMAGE_SUFFIXES)
