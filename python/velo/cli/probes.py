"""`/live` and `/ready` beside the figures of a run: answers to the probes of an orchestrator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from velo.cli.health import History, Sample, extended, why_not_live, why_not_ready

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication

__all__ = ["Probes"]

# Seconds between two samples.
_EVERY = 1.0
# So many seconds things may stand still, where the probe asks with no `patience` of its own.
_PATIENCE = {"/ready": 60.0, "/live": 300.0}
_JUDGES = {"/ready": why_not_ready, "/live": why_not_live}


class Probes:
    """Samples a run in its event loop, and answers probes in any thread."""

    def __init__(self) -> None:
        self._history: History | None = None
        self._next: asyncio.Handle

    @contextlib.contextmanager
    def sampling(self, sample: Callable[[], Sample]) -> Iterator[None]:
        """Take samples while the block runs, in the running event loop.

        Args:
            sample: Takes one.

        """
        loop = asyncio.get_running_loop()

        def take() -> None:
            self._next = loop.call_later(_EVERY, take)
            self._history = extended(self._history, sample())

        self._next = loop.call_soon(take)
        try:
            yield
        finally:
            self._next.cancel()

    def beside(self, app: WSGIApplication) -> WSGIApplication:
        """Answer at the paths of probes, and leave all others to `app`."""

        def answer(environ: dict[str, Any], respond: StartResponse) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path not in _JUDGES:
                return app(environ, respond)
            status, found = self._answer(path, environ.get("QUERY_STRING", ""))
            body = json.dumps(found).encode() + b"\n"
            length = str(len(body))
            respond(status, [("Content-Type", "application/json"), ("Content-Length", length)])
            return [body]

        return answer

    def _answer(self, path: str, query: str) -> tuple[str, dict[str, Any]]:
        patience = _PATIENCE[path]
        if given := parse_qs(query).get("patience"):
            try:
                patience = float(given[-1])
            except ValueError:
                patience = math.nan
            if not patience > 0:
                return "400 Bad Request", {"error": "`patience` is a number of seconds above 0"}
        why = _JUDGES[path](self._history, time.monotonic(), patience)
        status = "503 Service Unavailable" if why else "200 OK"
        return status, {path[1:]: not why, "why": why}
