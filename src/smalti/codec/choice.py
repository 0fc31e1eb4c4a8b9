"""Selects the coding, the codec and the initial token counts for a tokenizer's token files."""

from importlib.util import find_spec
from typing import Literal

import numpy as np
from jaxtyping import Int64

from smalti.codec.context_codec import ContextCodec
from smalti.codec.saved_codec import CODEC_FILE, find_codec
from smalti.formats import Coding
from smalti.tokenizers import Tokenizer
from smalti.zoo import saved_folder


def chosen_coding(run: str, coding: Coding | Literal["auto"], codec: str = "") -> tuple[Coding, ContextCodec | None]:
    """The coding of token files of a tokenizer, and the codec that coding by context needs.

    Args:
        run: the tokenizer's name.
        coding: the requested coding. "auto" is context if the tokenizer has a codec and a range coder is installed,
            else packed.
        codec: path of a codec outside the tokenizer's folder.

    Raises:
        FileNotFoundError: context coding without a codec.
        ValueError: a damaged codec.
    """
    folder = saved_folder(run)
    if coding == "auto":
        able = find_spec("constriction") is not None and (folder / CODEC_FILE).is_file()
        coding = "context" if codec or able else "packed"
    return coding, find_codec(folder, codec) if coding == "context" else None


def coding_tables(tokenizer: Tokenizer) -> list[Int64[np.ndarray, " k"]] | None:
    """Initial counts of the range coder: see `Quantizer.code_counts`."""
    counts = tokenizer.quantizer.code_counts()
    return None if counts is None else [count.numpy() for count in counts]
