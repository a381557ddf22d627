"""The web application of the dashboard: a page, its events, and what it may ask and order."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from velo.cli.dashboard.access import Gate
from velo.cli.dashboard.view import ORDERS, View
from velo.cli.dashboard.watch import Watch
from velo.cli.errors import Failure

__all__ = ["application", "serve"]

_PAGE = Path(__file__).with_name("page")
_FILES = ("dashboard.css", "dashboard.js", "chart.js", "format.js", "panel.js", "table.js")
# The seconds that open pages may take to notice the end of the server.
_GRACE = 2


def serve(listener: socket.socket, watch: Watch, token: str, host: str) -> None:
    """Serve the dashboard until a signal ends it."""
    app = application(watch, token, host, lambda: server.should_exit)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE,
    )
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def application(watch: Watch, token: str, host: str, ends: Callable[[], bool]) -> Gate:
    """Return the application.

    Args:
        watch: The figures.
        token: The token that requests need.
        host: The name or address that it is served at.
        ends: Whether the server is about to end; open pages are let go then.

    """
    page = (_PAGE / "index.html").read_text().replace("{token}", token)

    async def index(request: Request) -> Response:
        return HTMLResponse(page)

    async def events(request: Request) -> Response:
        asked = request.query_params
        order = asked.get("sort", "rate")
        view = View(asked.get("find", ""), order if order in ORDERS else "rate", "turned" in asked)
        return StreamingResponse(_events(watch, view, ends), media_type="text/event-stream")

    async def inspect(request: Request) -> Response:
        asked = request.query_params
        return await _answer(
            watch.inspect(asked.get("stream", ""), asked.get("key"), asked.get("socket"))
        )

    async def end(request: Request) -> Response:
        try:
            asked = orjson.loads(await request.body())
            where, stream = str(asked["socket"]), str(asked["stream"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return _json({"error": 'the body is {"socket": ..., "stream": ...}'}, 400)
        return await _answer(watch.end(where, stream))

    return Gate(
        Starlette(
            routes=[
                Route("/", index),
                *(Route(f"/{name}", _file(name)) for name in _FILES),
                Route("/events", events),
                Route("/inspect", inspect),
                Route("/end", end, methods=["POST"]),
            ]
        ),
        token,
        host,
    )


def _file(name: str) -> Callable[[Request], FileResponse]:
    return lambda request: FileResponse(_PAGE / name)


async def _answer(asked: AsyncIterator[object] | object) -> Response:
    try:
        return _json(await asked)  # type: ignore[misc]
    except Failure as error:
        return _json({"error": error.message}, 404)


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


async def _events(watch: Watch, view: View, ends: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield the points of the charts so far, and then each look."""
    yield _event("history", watch.history.points())
    async for look in watch.looks():
        if ends():
            return
        yield _event("look", view.of(look))


def _event(name: str, value: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(value))
