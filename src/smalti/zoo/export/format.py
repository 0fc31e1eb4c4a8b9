"""The interface of an export format."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.tokenizers import Tokenizer


@dataclass(frozen=True)
class Format:
    """A way to write a tokenizer."""

    code: str
    """Name of the code that reads it."""
    loading: str
    """One line of Python that loads it with this code; OUT stands for the folder."""
    write: Callable[[Tokenizer, Path], Sequence[str]]
    """Writes the files to an empty folder and returns notes for users, one sentence each. Raises ValueError before it
    writes anything if the format cannot express the tokenizer."""


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
