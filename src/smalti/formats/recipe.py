"""Recipes: YAML tables with all settings of a run.

YAML parsers disagree about numbers: `4e10` is a number to some and text to others. Therefore all text except plain
names is written in quotes, and every parser reads the same values.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
"""Text that needs no quotes, unless it is a word that YAML reserves (no, null)."""


class _Dumper(yaml.SafeDumper):
    """Quotes all text except plain names."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if NAME.fullmatch(text) else '"')


_Dumper.add_representer(str, _represent_text)


def write_recipe(settings: Mapping[str, Any]) -> str:
    """A table of plain types as YAML, order preserved."""
    return yaml.dump(dict(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def write_list(values: Sequence[Any]) -> str:
    """Plain types as a one-line YAML list, as command line options expect it."""
    return yaml.dump(list(values), Dumper=_Dumper, default_flow_style=True, width=math.inf).strip()


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the table from a recipe.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a YAML table.
    """
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a recipe ({' '.join(str(error).split())})") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: not a recipe (expected a YAML table)")
    return recipe
