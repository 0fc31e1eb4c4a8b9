"""The documents as a site: built without network and without a warning, both languages, with search and API."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs the extra smalti[docs]")
ROOT = Path(__file__).resolve().parent.parent


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ
        | {"NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    found = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {each["location"].partition("#")[0] for each in found["docs"]}
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in ROOT.glob("docs/*/**/*.md")}
    assert pages <= places
    assert any("量化" in each["text"] for each in found["docs"])
    text = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert 'id="smalti.quantizers.VectorQuantizer"' in text
    for page in (tmp_path / "site").rglob("*.html"):
        for mark in ('src="http', 'rel="stylesheet" href="http', "@import url(http"):
            assert mark not in page.read_text(encoding="utf-8"), page
