"""Ending the input of idle streams: one timer for each event loop, for all of its streams."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import weakref
from typing import Protocol

from velo import _core
from velo._time_limit import time_left

__all__ = ["age", "watch"]


class Idling(Protocol):
    """A stream with a `timeout`."""

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""

    def _idle_seconds(self) -> float:
        """Return the seconds since it was used."""

    def _expire(self, timeout: float) -> None:
        """End its input."""

    def _age(self, seconds: float) -> None:
        """Move the moment at which it was used back."""


_timers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Timer] = weakref.WeakKeyDictionary()


def watch(loop: asyncio.AbstractEventLoop, stream: Idling, timeout: float) -> None:
    """End the input of `stream` once it was idle for `timeout` seconds."""
    timer = _timers.get(loop)
    if timer is None:
        timer = _timers[loop] = _Timer(loop)
    timer.add(stream, timeout, timeout)


def age(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Count the streams of `loop` as idle for that much longer: its clock was moved."""
    timer = _timers.get(loop)
    if timer is not None:
        timer.age(seconds)


class _Timer:
    """Checks a stream when its timeout may have passed, and again later if it was used meanwhile.

    A use of a stream only notes the time, so that the heap changes once per stream and timeout, not
    once per event.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._due: list[tuple[float, int, float, weakref.ref[Idling]]] = []
        self._order = itertools.count()
        self._handle: asyncio.TimerHandle | None = None
        # While the timer runs: time in which this process stands still is no idle time.
        self._limit: _core.RunningLimit | None = None

    def add(self, stream: Idling, after: float, timeout: float) -> None:
        loop = self._loop()
        if loop is None:
            return
        entry = (loop.time() + after, next(self._order), timeout, weakref.ref(stream))
        heapq.heappush(self._due, entry)
        self._schedule(loop)

    def age(self, seconds: float) -> None:
        for _, _, _, reference in self._due:
            if (stream := reference()) is not None:
                stream._age(seconds)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        when = self._due[0][0]
        if self._handle is not None:
            if self._handle.when() <= when and not self._handle.cancelled():
                return
            self._handle.cancel()
        self._handle = loop.call_at(when, self._look)
        self._limit = _core.RunningLimit(when - loop.time())

    def _look(self) -> None:
        loop = self._loop()
        self._handle = None
        if loop is None:
            return
        now = loop.time()
        again: list[tuple[Idling, float, float]] = []
        while self._due and self._due[0][0] <= now:
            _, _, timeout, reference = heapq.heappop(self._due)
            stream = reference()
            if stream is None or stream.closed:
                continue
            left = time_left(timeout, stream._idle_seconds(), loop)
            if left > 0:
                again.append((stream, left, timeout))
            else:
                stream._expire(timeout)
        for stream, after, timeout in again:
            self.add(stream, after, timeout)
        if self._due:
            self._schedule(loop)
        else:
            self._limit = None
