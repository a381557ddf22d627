"""faster-fifo: a queue in shared memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from faster_fifo import Queue

from velo.bench.peers import Work
from velo.bench.peers.stdlib import FORK

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
            # It gives what is there at one go.
            self._came = self.results.get_many(timeout=LONG)
            self._came.reverse()
        return self._came.pop()


@contextlib.contextmanager
def fifos(work: Work) -> Iterator[_Fifos]:
    """Use a queue each way."""
    both = _Fifos()
    arguments = (both.events, both.results, work)
    process = FORK.Process(target=_serve, args=arguments, daemon=True)
    process.start()
    yield both
    both.send(None)
    process.join()
