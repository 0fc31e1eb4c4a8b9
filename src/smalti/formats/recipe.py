"""Recipes: the YAML tables that say everything about a run.

YAML readers disagree about what is a number (`4e10` is one to some, text to others), so every text that is more than a
name is written in quotes, and what is written is read back by all of them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = ["read_recipe", "write_list", "write_recipe"]

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
"""Text that may stand without quotes, but for the words that YAML itself reserves (no, null)."""


class _Dumper(yaml.SafeDumper):
    """Leaves quotes away around names only."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if NAME.fullmatch(text) else '"')


_Dumper.add_representer(str, _represent_text)


def write_recipe(settings: Mapping[str, Any]) -> str:
    """A table of plain types as YAML, in its order."""
    return yaml.dump(dict(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def write_list(values: Sequence[Any]) -> str:
    """Plain types as a YAML list in one line, as an option of the command line takes it."""
    return yaml.dump(list(values), Dumper=_Dumper, default_flow_style=True, width=math.inf).strip()


def read_recipe(path: Path) -> dict[str, Any]:
    """The table in a recipe.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a YAML table.
    """
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a recipe ({' '.join(str(error).split())})") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: not a recipe (a YAML table)")
    return recipe
