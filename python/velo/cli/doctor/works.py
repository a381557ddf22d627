"""Velo itself: its version, and whether a stream runs."""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator

import velo
from velo import StreamFn, _core, stream_fn
from velo.cli.doctor.check import FAIL, OK, WARN, Check

__all__ = ["python", "stream"]

# Seconds. A cold start of Python on a slow disk takes a few; a longer start has failed.
_BOUND = 30.0
_SLOW_START = 5.0
_EVENTS = 200


def python() -> Check:
    """Look at the interpreter, and at the compiled half of velo."""
    found = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    if _core.__version__ != velo.__version__:
        advice = "reinstall velo: `pip install --force-reinstall velo-stream`"
        found += f"; velo {velo.__version__} with a core of version {_core.__version__}"
        return Check("python", FAIL, found, advice)
    if sys.version_info < (3, 11) or platform.python_implementation() != "CPython":
        return Check("python", FAIL, found, "velo needs CPython 3.11 or later")
    return Check("python", OK, found)


def modes() -> Check:
    """Say which modes this build has."""
    advice = "use a wheel for Linux if you need worker processes; all else is the same here"
    return Check("modes", WARN, "inline; this build has no process mode", advice)


@stream_fn(mode="process", workers=1)
async def _echo(events: AsyncIterator[int]) -> AsyncIterator[int]:
    async for event in events:
        yield event


def stream() -> Check:
    """Run a stream in a worker process, and time it."""
    try:
        return _stream(_echo)
    finally:
        _core.shutdown(2.0)


def inline_stream() -> Check:
    """Run a stream in this process, and time it."""
    return _stream(_echo.options(mode="inline", workers=None))


def _stream(fn: StreamFn[int, int]) -> Check:
    name = "a stream"
    try:
        started, trips = asyncio.run(asyncio.wait_for(_try(fn), _BOUND))
    except TimeoutError:
        advice = "see what the checks below find"
        return Check(name, FAIL, f"nothing came of it within {_BOUND:.0f} s", advice)
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        advice = "do what it says, and what the checks below find"
        return Check(name, FAIL, f"{type(error).__name__}: {error} {notes}".rstrip(), advice)
    middle = statistics.median(trips) * 1e6
    found = f"started in {started * 1000:.0f} ms, one event there and back in {middle:.0f} µs"
    if started > _SLOW_START:
        advice = "a slow start of Python: look at what its start imports (`python -X importtime`)"
        return Check(name, WARN, found, advice)
    return Check(name, OK, found)


async def _try(fn: StreamFn[int, int]) -> tuple[float, list[float]]:
    began = time.perf_counter()
    trips = []
    async with fn.open() as opened:
        await opened.send(os.getpid())
        if await opened.recv() != os.getpid():
            raise RuntimeError("another event came back than was sent")
        started = time.perf_counter() - began
        for number in range(_EVENTS):
            sent = time.perf_counter()
            await opened.send(number)
            await opened.recv()
            trips.append(time.perf_counter() - sent)
    return started, trips
