"""The guard lets the page of this machine in, and no request that another web site makes."""

import asyncio

import pytest

from smalti.playground.guard import Guard

HOST = "127.0.0.1:7860"


async def _hello(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def status(method: str = "POST", kind: str = "http", **headers: str) -> int:
    """The status of the answer to a request; a refused web socket counts as 403."""
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    async def receive() -> dict:
        return {}

    scope = {"type": kind, "method": method, "headers": pairs}
    asyncio.run(Guard(_hello)(scope, receive, send))
    return 403 if sent[0]["type"] == "websocket.close" else sent[0]["status"]


def test_the_own_page_is_let_in() -> None:
    assert status(host=HOST, origin=f"http://{HOST}", sec_fetch_site="same-origin") == 200
    assert status("GET", host="localhost:7860") == 200
    assert status("GET", host="[::1]:7860") == 200
    # a link on another page, followed by a person
    assert status("GET", host=HOST, sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:7860"},  # DNS rebinding
        {"host": "127.0.0.1.evil.example"},
        {},
        {"host": HOST, "origin": "http://evil.example"},
        {"host": HOST, "origin": "http://127.0.0.1:9999"},
        {"host": HOST, "origin": "null"},
        {"host": HOST, "sec_fetch_site": "cross-site"},
        {"host": HOST, "sec_fetch_site": "same-site", "sec_fetch_mode": "navigate"},
    ],
    ids=str,
)
def test_requests_of_other_sites_are_refused(headers: dict[str, str]) -> None:
    assert status(**headers) == 403
    assert status(kind="websocket", **headers) == 403
