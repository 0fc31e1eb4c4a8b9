"""The served application without a browser: who is let in, what the page consists of, where it listens."""

import asyncio
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smalti.playground import app
from smalti.playground.config import PlayConfig
from smalti.playground.guard import Application
from smalti.playground.opened import Opened
from smalti.playground.serve import listen, open_models
from smalti.playground.words import words
from smalti.tokenizers import SimpleVQVAE

HOST = "http://127.0.0.1:7860"
FILES = sorted(app.PAGE.iterdir())


def test_the_application_serves_its_own_page_and_refuses_other_sites(
    build: Callable[[dict[str, Opened]], Application],
) -> None:
    httpx = pytest.importorskip("httpx")
    served = build({"tiny": Opened("tiny", SimpleVQVAE(12, 4, 8, num_res_blocks=0).eval())})

    async def answers() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url=HOST) as client:
            page = await client.get("/")
            rebound = await client.get("/", headers={"host": "evil.example"})
            crossed = await client.post(
                "/gradio_api/component_server", json={}, headers={"origin": "http://evil.example"}
            )
            assert "smalti playground" in page.text
            return [page.status_code, rebound.status_code, crossed.status_code]

    assert asyncio.get_event_loop().run_until_complete(answers()) == [200, 403, 403]


def test_without_gradio_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"gradio is not installed; run pip install 'smalti\[play\]'"):
        app.application({})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_of_the_page_names_another_host(path: Path) -> None:
    assert not re.search(r"https?:|//[a-z]+\.", path.read_text(encoding="utf-8"))


def test_every_text_of_the_page_is_in_the_table_and_every_entry_is_used() -> None:
    text = app.markup() + "".join(path.read_text(encoding="utf-8") for path in FILES if path.suffix == ".js")
    used = set(re.findall(r'data-(?:word|label)="(\w+)"', text)) | set(re.findall(r'"(\w+)"', text))
    table = set(words()["en"])
    assert set(re.findall(r'data-(?:word|label)="(\w+)"', text)) | set(re.findall(r'word\("(\w+)"', text)) <= table
    assert {key for key in table - used if not key.startswith(("layer_", "refused_", "failed_"))} == set()


def test_the_files_are_short() -> None:
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path.name


def test_without_models_the_box_is_opened(box: Path) -> None:
    assert list(open_models(PlayConfig())) == ["photo-f8", "photo-pyramid"]
    assert list(open_models(PlayConfig(models=(str(box / "photo-f8"),)))) == [str(box / "photo-f8")]
    with pytest.raises(FileNotFoundError):
        open_models(PlayConfig(models=("no/such/folder/here",)))


def test_a_port_in_use_is_one_line_and_without_a_port_a_free_one_is_found() -> None:
    with listen("127.0.0.1", 0) as first, listen("127.0.0.1", 0) as second:
        ports = [each.getsockname()[1] for each in (first, second)]
        assert ports[0] < ports[1]
        with pytest.raises(OSError, match=f"port: got {ports[0]} on 127.0.0.1, expected a free one"):
            listen("127.0.0.1", ports[0])
    with pytest.raises(OSError, match="expected a free one"), socket.create_server(("127.0.0.1", 0)) as taken:
        listen("127.0.0.1", taken.getsockname()[1])
