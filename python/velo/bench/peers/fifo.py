"""faster-fifo: a queue in shared memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from faster_fifo import Queue

from velo.bench.peers import Work
from velo.bench.peers.stdlib import serving

BYTES = 64 << 20
LONG = 3600.0


def _serve(events: Any, results: Any, work: Work) -> None:
    while True:
        for item in events.get_many(timeout=LONG):
            if item is None:
                return
            results.put(work(item), timeout=LONG)


class _Fifos:
    def __init__(self) -> None:
        self.events = Queue(BYTES)
        self.results = Queue(BYTES)
        self._came: list[Any] = []

    def send(self, item: Any) -> None:
        self.events.put(item, timeout=LONG)

    def recv(self) -> Any:
        if not self._came:
            # It returns all available objects at once.
            self._came = self.results.get_many(timeout=LONG)
            self._came.reverse()
        return self._came.pop()


def fifos(work: Work) -> AbstractContextManager[_Fifos]:
    """Use a queue each way."""
    both = _Fifos()
    return serving(both, _serve, both.events, both.results, work)
