"""Who may see the dashboard: whoever has its token.

The printed address carries the token. The page exchanges it for a cookie, so that it is in no
history and no `Referer`. Orders need the token itself in a header, which pages of other origins
cannot send.
"""

from __future__ import annotations

import ipaddress
import secrets
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Gate"]

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_NO_TOKEN = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<title>velo dashboard</title><h1>This page needs its token</h1>
<p>Open the address that <code>velo dashboard</code> has printed, with its <code>?token=</code>.
Each start of the command makes a new one.</p></html>"""


class Gate:
    """Lets requests pass that have the token.

    Args:
        app: The application behind it.
        token: The token.
        host: The name or address that the server was told to listen on.

    """

    def __init__(self, app: ASGIApp, token: str, host: str) -> None:
        self._app = app
        self._token = token
        self._names = {"localhost", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        answer = self._refusal(scope) or self._exchange(scope) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_known(urlsplit(f"//{host}").hostname or ""):
            # A name that somebody else has pointed at this machine.
            return PlainTextResponse(f"velo dashboard does not serve the host {host!r}\n", 421)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("velo dashboard answers no page of another origin\n", 403)
        return None

    def _exchange(self, scope: Scope) -> Response | None:
        """Return the answer to a request that brings the token in its address, or lacks it."""
        headers = Headers(scope=scope)
        cookie = f"velo_dashboard_{scope['server'][1]}"  # cookies are shared by all ports
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and self._is_token(given):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(cookie, self._token, httponly=True, samesite="strict")
            return answer
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        known = self._is_token(bearer)
        if scope["method"] in ("GET", "HEAD"):
            known = known or self._is_token(cookie_parser(headers.get("cookie", "")).get(cookie))
        if known:
            return None
        if scope["path"] == "/":
            return HTMLResponse(_NO_TOKEN, 403)
        return PlainTextResponse("velo dashboard needs its token\n", 403)

    def _is_token(self, text: str | None) -> bool:
        return secrets.compare_digest((text or "").encode(), self._token.encode())

    def _is_known(self, host: str) -> bool:
        try:
            # Nobody can point an address at this machine.
            ipaddress.ip_address(host)
        except ValueError:
            return host.lower() in self._names
        return True
