"""Stream functions that workers import."""

import asyncio
import contextvars
import itertools
import os
import threading
import time

from velo import stream_fn
from velo.events import TICK

tenant = contextvars.ContextVar("tenant")


def mark(path, text="x"):
    """Leaves a mark that other processes see at once."""
    with open(path, "a") as file:
        file.write(text)


def marks(path):
    """All marks that were left."""
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def move_clock(seconds):
    """Moves the clock of the running event loop on, as if so many seconds had passed."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds


@stream_fn
async def moves_clock(events):
    """Moves the clock of the event loop that runs it."""
    async for seconds in events:
        move_clock(seconds)
        await asyncio.sleep(0)
        yield seconds


@stream_fn
async def echo(events):
    async for event in events:
        yield event


@stream_fn
async def running_sum(events):
    total = 0
    async for event in events:
        total += event
        yield total


@stream_fn
async def repeat(events):
    """As many results as the event says."""
    async for count in events:
        for number in range(count):
            yield (count, number)


@stream_fn
async def after_loop(events):
    seen = []
    async for event in events:
        seen.append(event)
    for event in seen:
        yield event
    yield "done"


@stream_fn
async def slow_after_loop(events):
    count = 0
    async for _ in events:
        count += 1
    await asyncio.sleep(0.2)
    yield count


@stream_fn
async def first_two(events):
    """Returns early: after two events."""
    yield await anext(events)
    yield await anext(events)


@stream_fn
async def returns_at_once(events):
    return
    yield


@stream_fn
async def greets(events):
    yield "hello"
    async for event in events:
        yield event


@stream_fn
async def never_reads(events):
    yield "ready"
    await asyncio.Event().wait()


@stream_fn
async def counts_without_reading(events):
    for number in range(5):
        yield number


@stream_fn
async def endless(events):
    number = 0
    while True:
        yield number
        number += 1


@stream_fn
async def pids(events):
    async for _ in events:
        yield os.getpid()


@stream_fn
async def ticker(events):
    """Results without events."""
    for number in range(20):
        yield number
        await asyncio.sleep(0.05)
    async for event in events:
        yield event


@stream_fn
async def marks_finally(events):
    """The first event is the path where marks go: one of `finally`, one of a context manager."""
    path = await anext(events)
    async with Marking(path):
        try:
            yield "ready"
            async for event in events:
                yield event
        finally:
            await asyncio.sleep(0)
            mark(path, "f")


class Marking:
    def __init__(self, path):
        self.path = path

    async def __aenter__(self):
        mark(self.path, "(")

    async def __aexit__(self, *_):
        await asyncio.sleep(0)
        mark(self.path, ")")


@stream_fn
async def gate(events):
    """The first event is a path: works on the others only while something is there."""
    path = await anext(events)
    async for event in events:
        while not os.path.exists(path):
            await asyncio.sleep(0.002)
        yield event


@stream_fn
async def stubborn(events):
    """Will not be cancelled at once."""
    yield "ready"
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            raise


@stream_fn
async def nap(events):
    """Blocks its event loop for as long as each event says."""
    async for seconds in events:
        time.sleep(seconds)
        yield seconds


@stream_fn
async def sleeps(events):
    """Waits for as long as each event says."""
    async for seconds in events:
        await asyncio.sleep(seconds)
        yield seconds


class OwnError(Exception):
    """With attributes."""

    def __init__(self, message, code=0):
        super().__init__(message, code)
        self.code = code


class RequiredError(Exception):
    """Pickle cannot build this from `args`."""

    def __init__(self, what, *, where):
        super().__init__(f"{what} at {where}")
        self.what = what
        self.where = where


class Unpicklable(Exception):
    """Holds something that cannot travel."""

    def __init__(self, message):
        super().__init__(message)
        self.held = threading.Lock()


@stream_fn
async def doubles_or_fails(events):
    """Doubles numbers, raises exceptions that come."""
    async for event in events:
        if isinstance(event, Exception):
            raise event
        yield event * 2


@stream_fn
async def fails(events):
    """Yields what comes and raises what the word says."""
    async for event in events:
        match event:
            case "own":
                error = OwnError("broken", code=7)
                error.add_note("a note of its own")
                error.extra = {"more": 1}
                raise error
            case "required":
                raise RequiredError("gone", where="here")
            case "unpicklable":
                raise Unpicklable("holds a lock")
            case "group":
                raise ExceptionGroup("several", [ValueError("a"), OwnError("b", code=3)])
            case "nested group":
                inner = ExceptionGroup("inner", [KeyError("k")])
                raise ExceptionGroup("outer", [inner, OSError(2, "no such file", "name")])
            case "interrupt":
                raise KeyboardInterrupt
            case "exit":
                raise SystemExit(3)
            case "generator exit":
                raise GeneratorExit
            case "stop":
                raise StopIteration(5)
            case "stop async":
                raise StopAsyncIteration
            case "cancelled":
                raise asyncio.CancelledError
            case "timeout":
                raise TimeoutError("too late")
            case "cause":
                try:
                    {}["nothing"]
                except KeyError as error:
                    raise ValueError("outer") from error
            case "bad str":
                raise BadStr
            case "os":
                raise FileNotFoundError(2, "no such file", "some/name")
            case "unicode":
                b"\xff".decode()
        yield event


class BadStr(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def decorate(function):
    """Another decorator, in between."""
    import functools

    @functools.wraps(function)
    async def wrapped(events):
        async for result in function(events):
            yield ("decorated", result)

    return wrapped


@stream_fn
@decorate
async def decorated(events):
    async for event in events:
        yield event


async def with_factor(factor, events):
    async for event in events:
        yield event * factor


class Scaler:
    def __init__(self, factor):
        self.factor = factor

    async def scale(self, events):
        async for event in events:
            yield event * self.factor

    @staticmethod
    async def negate(events):
        async for event in events:
            yield -event

    @classmethod
    async def named(cls, events):
        async for event in events:
            yield (cls.__name__, event)

    async def __call__(self, events):
        async for event in events:
            yield event + self.factor


@stream_fn
async def numbered(events):
    """Counts its events."""
    count = 0
    async for event in events:
        count += 1
        yield count, event


@stream_fn
async def marks_slowly(events):
    """Leaves a mark for each event, the name of a file, after a while."""
    async for path in events:
        await asyncio.sleep(0.02)
        mark(path)
        yield path


@stream_fn
async def marks_its_end(events):
    """Counts its events; leaves a mark in the last one, the name of a file, when it ends."""
    count = 0
    try:
        async for path in events:
            count += 1
            yield count
    finally:
        mark(path)


@stream_fn
async def fails_at_zero(events):
    async for event in events:
        yield 1 / event


@stream_fn
async def fails_at_a_tick(events):
    """Fails at a tick once there is the file that the last event has named."""
    path = ""
    async for event in events.ticks(0.02):
        if event is not TICK:
            path = event
            yield 1
        elif os.path.exists(path):
            raise ZeroDivisionError


@stream_fn
async def counts_ticks(events):
    """Yields a few numbers for each tick, counting on, and leaves a mark behind each of them."""
    path, numbers = None, itertools.count()
    async for event in events.ticks(0.01):
        if event is not TICK:
            path = event
        if path is None:
            continue  # the event with its name has not come yet
        for number in itertools.islice(numbers, 20):
            yield number
            mark(path)


@stream_fn
async def waits_for_a_file(events):
    """Counts events, each of which names a file that it waits for."""
    count = 0
    async for path in events:
        while not os.path.exists(path):
            await asyncio.sleep(0.005)
        count += 1
        yield count
