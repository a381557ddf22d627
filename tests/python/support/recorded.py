"""Stream functions whose recordings are in tests/recordings, and how those were made.

    python tests/python/support/recorded.py

makes them anew, with other names. Keep the old ones: that they still load is what they are for.
"""

import asyncio
import contextlib
import datetime
import decimal
import os
import signal
import sys

from helpers import ROOT
from velo import _core, stream_fn
from velo._function.recording import MAGIC, _frame, frames
from velo.events import TICK
from workers import clients

FOLDER = ROOT / "tests" / "recordings"


@stream_fn
async def averages(events):
    """Every kind of value that velo's codec knows itself."""
    total = count = 0
    async for event in events:
        total, count = total + event["value"], count + 1
        yield {
            "mean": total / count,
            "at": event["at"],
            "tags": frozenset(event["tags"]),
            "raw": bytes(event["tags"][0], "utf-8"),
            "exact": decimal.Decimal(count) / 3,
            "pair": (count, None),
        }
    yield "the end"


@stream_fn
async def sessions(events):
    """Ticks."""
    session = []
    async for event in events.ticks(30.0):
        if event is not TICK:
            session.append(event)
        elif session:
            yield session
            session = []
    if session:
        yield session


@stream_fn
async def patient(events):
    """A deadline of its own, and a failure."""
    source = aiter(events)
    while True:
        try:
            async with asyncio.timeout(5.0):
                event = await anext(source)
        except TimeoutError:
            yield "nothing"
            continue
        except StopAsyncIteration:
            return
        if event == "bad":
            raise ValueError("a bad event")
        await asyncio.sleep(1.0)
        yield event


@stream_fn
async def lengths(events):
    async for event in events:
        yield len(event)


@stream_fn
async def ledger(events, state):
    """A state, which outlives a worker."""
    async for event in events:
        account = event["account"]
        state[account] = state.get(account, 0) + event["amount"]
        yield account, state[account], sum(state.values())


async def slowly(events):
    for seconds, event in events:
        await asyncio.sleep(seconds)
        yield event


async def make(mode):
    """Make a recording of each function."""
    day = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)
    readings = [
        {"value": number, "at": day + number * datetime.timedelta(hours=1), "tags": ["a", "é"]}
        for number in range(5)
    ]
    options = {"mode": mode, "record": FOLDER}
    await averages.options(**options).run(readings)
    await (lengths | averages_of_lengths).options(**options).run(["one", "three"])
    if mode == "inline":  # in no time
        clicks = slowly([(1, "home"), (1, "shop"), (50, "home"), (1, "pay")])
        await sessions.options(**options).run(clicks)
        with contextlib.suppress(ValueError):
            await patient.options(**options).run(slowly([(0, "a"), (12, "b"), (1, "bad")]))
    stream = await averages.options(**options).open()
    await stream.send(readings[0])
    await stream.recv()
    stream._cancel()
    await stream.aclose()


@stream_fn
async def averages_of_lengths(events):
    total = count = 0
    async for event in events:
        total, count = total + event, count + 1
        yield total / count


async def take_over():
    """Make a recording of each of two workers that a stream has had, the second with a state."""
    options = {"recover": "replay", "workers": 1, "journal_limit": 4096, "record": FOLDER}
    async with ledger.options(mode="process", **options).open() as stream:
        for number in range(12):
            booking = {"account": "abc"[number % 3], "amount": number * 10, "note": "-" * 700}
            await stream.send(booking)
            await stream.recv()
            if number == 8:
                (link,) = clients.client_of(asyncio.get_running_loop()).links.values()
                os.kill(link.pid, signal.SIGKILL)


def tidy(path):
    """Forget where on this machine the function was."""
    head, *steps = frames(path.read_bytes())
    kind, what = _core.loads(head)
    what["function"] = [[module, name, None] for module, name, _ in what["function"]]
    frame = _frame(kind, what)
    frame += b"".join(_frame(*_core.loads(step)) for step in steps)
    path.write_bytes(MAGIC + frame)


if __name__ == "__main__":
    sys.modules["recorded"] = sys.modules["__main__"]
    for each in (averages, sessions, patient, lengths, averages_of_lengths, ledger):
        each._function.__module__ = "recorded"
    from velo.testing import recordings, run_virtual

    old = set(recordings(FOLDER))
    run_virtual(make("inline"))
    asyncio.run(make("process"))
    asyncio.run(take_over())
    for path in recordings(FOLDER):
        if path not in old:
            tidy(path)
