"""Refuses requests that another web site makes to a server on this machine.

A page from elsewhere can make the user's browser send requests to 127.0.0.1, directly, or after its own name has come
to mean 127.0.0.1 (DNS rebinding). The browser reveals both: the header Host has the name that the page used, Origin and
Sec-Fetch-Site tell where the request comes from.

防止其他网站借用户的浏览器访问本机服务：检查 Host、Origin 与 Sec-Fetch-Site 三个请求头。
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine that a request may use."""


class Guard:
    """An ASGI application around another one that only lets this machine's own pages in."""

    def __init__(self, application: Application):
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = refusal(scope) if scope["type"] in ("http", "websocket") else ""
        if not reason:
            await self.application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": f"refused: {reason}\n".encode()})


def refusal(scope: Scope) -> str:
    """Why a request is refused; "" for one that is let in."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    host, origin, site = headers.get("host", ""), headers.get("origin"), headers.get("sec-fetch-site", "none")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name not in OWN_NAMES:
        return f"Host: got {host!r}, expected one of {', '.join(OWN_NAMES)}"
    if origin is not None and origin != f"http://{host}":
        return f"Origin: got {origin!r}, expected http://{host}"
    opened = scope["type"] == "http" and scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
    if site not in ("none", "same-origin") and not opened:  # a link to this page may be anywhere
        return f"Sec-Fetch-Site: got {site!r}, expected same-origin"
    return ""
