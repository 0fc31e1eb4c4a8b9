"""Whether the first word after a verb names the tokenizer, or it was left out: `smalti encode [RUN] IMAGES...`.

The word is the tokenizer if it is a name of the box, a folder with a saved model or a checkpoint. It also is where
there are more words than the other arguments take, or, if these are any number of images, where it is none of them. So
a name on the hub is one, and of a mistyped folder the tokenizer's own error tells.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from smalti.data.decode import IMAGE_SUFFIXES
from smalti.zoo import is_boxed, kind_of


def begins_with_tokenizer(words: Sequence[str], most: float) -> bool:
    """Whether the first of these words names a tokenizer.

    Args:
        words: all words after the verb that are no options.
        most: how many of them the arguments after the tokenizer take; inf for any number of images.

    Raises:
        ValueError: a name of the box that is a file or folder here, too.
    """
    if not words:
        return False
    first = Path(words[0])
    if is_boxed(words[0]) and first.exists():
        raise ValueError(f"{first}: the box and this folder both have one; expected ./{first} for the one here")
    if kind_of(words[0]) is not None:
        return True
    if most < math.inf or len(words) == 1:
        return len(words) > most
    return not (first.is_file() or first.suffix.lower() in IMAGE_SUFFIXES)
