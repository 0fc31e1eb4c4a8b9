"""The page about published checkpoints lists every family with its address, in both languages."""

import re
from pathlib import Path

import pytest

from smalti.zoo import FAMILIES

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_family_is_listed_with_its_source(language):
    text = (DOCS / language / "published.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    listed = {row[0].strip("`") for row in rows if len(row) == 4} - {"family"}
    sources = {name: row[1] for row in rows for name in re.findall(r"`([\w-]+)`", row[0]) if "](http" in row[1]}
    assert listed == set(sources) == set(FAMILIES)
    for name, family in FAMILIES.items():
        assert f"({family.url})" in sources[name]
