"""Workers that die on purpose."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import tempfile
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

from velo import StreamFn
from velo.events import TICK

__all__ = ["crash_at"]

In = TypeVar("In")
Out = TypeVar("Out")


def crash_at(
    fn: StreamFn[In, Out],
    event: int,
    *,
    times: int = 1,
    signal: signal.Signals = signal.SIGKILL,
) -> StreamFn[In, Out]:
    """Return the same function, whose worker dies when it takes a certain event.

    Use it to test how your program reacts, or to test `recover`. All streams of the function
    together kill `times` workers, and no more, so that a stream which moves to another worker gets
    past that event.

    Args:
        fn: A function in process mode.
        event: The number of the event in its stream, from 1.
        times: How many workers die.
        signal: The signal that kills them.

    Raises:
        ValueError: When the function is inline, because your own process would die.

    """
    if fn.config.mode != "process":
        raise ValueError('`crash_at` is for `mode="process"`: inline, it would end this process')
    if event < 1:
        raise ValueError(f"`event` must be at least 1, not {event!r}")
    # The length of the file is the number of workers that are still to die.
    fd, path = tempfile.mkstemp(prefix="velo-crash-")
    os.truncate(fd, times)
    os.close(fd)
    crashing = _Crashing(fn._function, event, int(signal), path)
    # Functions that are made of this one have it in common: `.options(...)`, `a | b`.
    weakref.finalize(crashing, _remove, path)
    return StreamFn(crashing, fn.config)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


class _Crashing:
    def __init__(
        self, function: Callable[..., AsyncIterator[Any]], event: int, signal: int, path: str
    ) -> None:
        self.inner = function
        self._how = (event, signal, path)
        self.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)
        self.__wrapped__ = function

    async def __call__(self, events: Any, *state: Any) -> AsyncGenerator[Any, None]:
        results = self.inner(_Counted(events, self._how), *state)
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(results, AsyncGenerator):
                await stack.enter_async_context(contextlib.aclosing(results))
            async for result in results:
                yield result

    def __reduce__(self) -> Any:
        from velo._function.reference import describe

        return _restore, (describe(self.inner), *self._how)


def _restore(described: Any, event: int, signal: int, path: str) -> _Crashing:
    from velo._function.reference import build

    return _Crashing(build(described), event, signal, path)


class _Counted(AsyncIterator[Any]):
    def __init__(self, events: Any, how: tuple[int, int, str]) -> None:
        self._events = events
        self._how = how
        self._count = [0]

    async def __anext__(self) -> Any:
        event = await anext(self._events)
        if event is not TICK:
            self._count[0] += 1
            if self._count[0] == self._how[0]:
                self._die()
        return event

    def ticks(self, seconds: float) -> AsyncIterator[Any]:
        counted = _Counted(self._events.ticks(seconds), self._how)
        counted._count = self._count
        return counted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._events, name)

    def _die(self) -> None:
        _, number, path = self._how
        try:
            file = open(path, "rb+")  # noqa: SIM115
        except FileNotFoundError:
            raise RuntimeError(
                "the function that `crash_at` has returned is gone: keep it for as long as its "
                "copies run, or no worker dies"
            ) from None
        with file as left:
            fcntl.flock(left, fcntl.LOCK_EX)
            if size := os.fstat(left.fileno()).st_size:
                os.truncate(left.fileno(), size - 1)
                os.kill(os.getpid(), number)
