"""multiprocessing and concurrent.futures."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection as End
from typing import Any, TypeVar

from velo.bench.peers import Connection, Work

Peer = TypeVar("Peer", bound=Connection)

# A process without threads may fork, which is the fastest start.
FORK = multiprocessing.get_context("fork")


@contextlib.contextmanager
def serving(connection: Peer, work: Callable[..., None], *arguments: Any) -> Iterator[Peer]:
    """Run `work` in another process, until None is sent through the connection."""
    process = FORK.Process(target=work, args=arguments, daemon=True)
    process.start()
    yield connection
    connection.send(None)
    process.join()


def _work_pipe(end: End[Any, Any], work: Work) -> None:
    while (item := end.recv()) is not None:
        end.send(work(item))


def pipe(work: Work) -> AbstractContextManager[End[Any, Any]]:
    """Use a pipe, both ways."""
    here, there = FORK.Pipe()
    return serving(here, _work_pipe, there, work)


def _work_queue(events: Any, results: Any, work: Work) -> None:
    while (item := events.get()) is not None:
        results.put(work(item))


class _Queues:
    def __init__(self) -> None:
        self.events = FORK.Queue()
        self.results = FORK.Queue()
        self.send = self.events.put
        self.recv = self.results.get


def queue(work: Work) -> AbstractContextManager[_Queues]:
    """Use a queue each way."""
    queues = _Queues()
    return serving(queues, _work_queue, queues.events, queues.results, work)


class _Pool:
    def __init__(self, executor: ProcessPoolExecutor, work: Work) -> None:
        self._executor = executor
        self._work = work
        self._calls: collections.deque[Future[Any]] = collections.deque()

    def send(self, item: Any) -> None:
        self._calls.append(self._executor.submit(self._work, item))

    def recv(self) -> Any:
        return self._calls.popleft().result()


@contextlib.contextmanager
def pool(work: Work) -> Iterator[_Pool]:
    """Use a pool of one process, one call per object."""
    with ProcessPoolExecutor(1, mp_context=FORK) as executor:
        yield _Pool(executor, work)
