"""Ray: an actor, one call per object."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from typing import Any

import ray

from velo.bench.peers import Work


class _Actor:
    def __init__(self, work: Work) -> None:
        class Worker:
            def apply(self, item: Any) -> Any:
                return work(item)

        self._actor = ray.remote(Worker).remote()
        self._calls: collections.deque[Any] = collections.deque()

    def send(self, item: Any) -> None:
        self._calls.append(self._actor.apply.remote(item))

    def recv(self) -> Any:
        return ray.get(self._calls.popleft())


@contextlib.contextmanager
def actor(work: Work) -> Iterator[_Actor]:
    """Use an actor on a Ray of its own."""
    owner = not ray.is_initialized()
    ray.init(
        ignore_reinit_error=True,
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=256 << 20,
    )
    try:
        yield _Actor(work)
    finally:
        if owner:
            ray.shutdown()
