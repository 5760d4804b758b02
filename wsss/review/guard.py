"""Which requests a local page answers: those of its own page, on this machine, that know the random token in the address.

Other programs and other users of the machine do not know the token. Web sites that make a browser send requests to 127.0.0.1 fail at the
header `Host` (DNS rebinding), at `Origin` or at `Sec-Fetch-Site` (forged requests), and could not know the token either.
"""

import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
_SAFE = ("GET", "HEAD")
_HOST = re.compile(r"(?:127\.0\.0\.1|localhost)(?::\d{1,5})?")
_HINT = "Open the address that the command printed when it started."


def new_token() -> str:
    """A random token of 256 bits."""
    return secrets.token_urlsafe(32)


class Guard:
    """Passes requests to `/TOKEN/...` on to an application as `/...`, with the headers of `HEADERS` on every answer.

    Args:
        app: the application.
        token: the token.
    """

    def __init__(self, app: App, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"unexpected connection of type {scope['type']}")

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        problem = self._problem(Headers(scope=scope), scope["method"], scope["path"])
        if problem:
            await PlainTextResponse(f"{problem}. {_HINT}\n", 403)(scope, receive, send_protected)
            return
        _, _, below = scope["path"][1:].partition("/")
        inner = {**scope, "path": f"/{below}", "raw_path": f"/{below}".encode(), "root_path": ""}
        await self.app(inner, receive, send_protected)

    def _problem(self, headers: Headers, method: str, path: str) -> str | None:
        """Why a request is refused, None if it is not."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            return "Wrong host"
        origins = headers.getlist("origin")
        if any(origin != f"http://{hosts[0]}" for origin in origins) or (method not in _SAFE and len(origins) != 1):
            return "Wrong origin"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "A request of another site"
        first, slash, _ = path[1:].partition("/")
        if not hmac.compare_digest(first.encode("utf-8", errors="replace"), self.token.encode()) or not slash:
            return "Wrong address"
        return None


async def bounded_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: 413 if it has more than `most` bytes.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise HTTPException(413, f"More than {most} bytes.")
        chunks.append(chunk)
    return b"".join(chunks)
