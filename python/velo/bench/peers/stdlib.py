"""multiprocessing and concurrent.futures."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import Connection as End
from typing import Any

from velo.bench.peers import Work

# What has no threads may fork, which is what starts soonest.
FORK = multiprocessing.get_context("fork")


def _work_pipe(end: End[Any, Any], work: Work) -> None:
    while (item := end.recv()) is not None:
        end.send(work(item))


@contextlib.contextmanager
def pipe(work: Work) -> Iterator[End[Any, Any]]:
    """Use a pipe, both ways."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=_work_pipe, args=(there, work), daemon=True)
    process.start()
    yield here
    here.send(None)
    process.join()


def _work_queue(events: Any, results: Any, work: Work) -> None:
    while (item := events.get()) is not None:
        results.put(work(item))


class _Queues:
    def __init__(self) -> None:
        self.events = FORK.Queue()
        self.results = FORK.Queue()
        self.send = self.events.put
        self.recv = self.results.get


@contextlib.contextmanager
def queue(work: Work) -> Iterator[_Queues]:
    """Use a queue each way."""
    queues = _Queues()
    arguments = (queues.events, queues.results, work)
    process = FORK.Process(target=_work_queue, args=arguments, daemon=True)
    process.start()
    yield queues
    queues.send(None)
    process.join()


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
