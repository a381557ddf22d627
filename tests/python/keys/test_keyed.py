"""`keyed`: one stream per key."""

import asyncio
import contextlib
import itertools
import os
import signal
import weakref

import pytest

import functions
from functions import OwnError
from helpers import HANG, blocked, cancel, notes, until
from key_sums import collect
from velo import stream_fn
from velo.errors import SlowStepWarning

pytestmark = pytest.mark.on_ray


@stream_fn
async def per_key(events):
    """Which event of its stream each one is, and how many there were at the end."""
    count = 0
    async for event in events:
        count += 1
        yield (event, count)
    yield ("end", count)


@contextlib.contextmanager
def alarm(seconds):
    """Raises `TimeoutError` in whatever runs then."""

    def ring(*_):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def events(keys, count):
    return [(key, number) for number in range(count) for key in range(keys)]


async def as_async(source):
    for event in source:
        yield event


@pytest.fixture(params=["plain", "async"])
def source(request):
    return (lambda it: it) if request.param == "plain" else as_async


async def test_order_within_each_key(mode, source):
    found = await collect(functions.echo.options(mode=mode).keyed(source(events(20, 50)), key=0))
    assert found == {key: [(key, number) for number in range(50)] for key in range(20)}


async def test_each_key_has_its_state_and_its_end(mode, source):
    found = await collect(per_key.options(mode=mode).keyed(source("abcab"), key=lambda e: e))
    assert found == {
        "a": [("a", 1), ("a", 2), ("end", 2)],
        "b": [("b", 1), ("b", 2), ("end", 2)],
        "c": [("c", 1), ("end", 1)],
    }


async def test_no_events(mode, source):
    assert await collect(per_key.options(mode=mode).keyed(source([]), key=0)) == {}


class Record:
    def __init__(self, user):
        self.user = user


async def test_key_by_field_index_attribute_or_function(mode):
    @stream_fn(mode=mode)
    async def count(events):
        number = 0
        async for _ in events:
            number += 1
        yield number

    assert await collect(count.keyed([{"u": 1}, {"u": 2}, {"u": 1}], key="u")) == {1: [2], 2: [1]}
    assert await collect(count.keyed([("x", 1), ("y", 1)], key=1)) == {1: [2]}
    assert await collect(count.keyed([Record("a"), Record("a")], key="user")) == {"a": [2]}
    assert await collect(count.keyed([1, 2, 3], key=lambda e: e % 2)) == {1: [2], 0: [1]}


@pytest.mark.parametrize("key", ["missing", 7])
async def test_event_without_the_key(mode, key):
    with pytest.raises((KeyError, IndexError, AttributeError, TypeError)):
        await collect(functions.echo.options(mode=mode).keyed([{"u": 1}], key=key))


async def test_key_that_is_not_hashable(mode):
    with pytest.raises(TypeError, match="unhashable"):
        await collect(functions.echo.options(mode=mode).keyed([1], key=lambda e: [e]))


async def test_the_least_recently_used_is_forced_out(mode, source):
    limited = per_key.options(mode=mode, max_concurrent=2)
    found = await collect(limited.keyed(source("aabacab"), key=lambda e: e))
    # b goes when c comes, being older than a; then c goes when b comes back
    assert found["a"] == [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("end", 4)]
    assert found["b"] == [("b", 1), ("end", 1), ("b", 1), ("end", 1)]
    assert found["c"] == [("c", 1), ("end", 1)]


async def test_never_more_than_max_concurrent(mode, tmp_path):
    folder = str(tmp_path)

    @stream_fn(mode=mode, max_concurrent=3)
    async def counted(events):
        name = os.path.join(folder, f"{id(events)}-{os.getpid()}")
        with open(name, "w"):
            pass
        try:
            async for event in events:
                yield len(os.listdir(folder))
        finally:
            os.remove(name)

    found = await collect(counted.keyed([n * 7 % 11 for n in range(200)], key=lambda e: e))
    assert max(number for results in found.values() for number in results) <= 3
    assert sum(map(len, found.values())) == 200


async def test_one_place_is_enough(mode, source):
    limited = per_key.options(mode=mode, max_concurrent=1)
    found = await collect(limited.keyed(source("abcab"), key=lambda e: e))
    assert found == {
        "a": [("a", 1), ("end", 1)] * 2,
        "b": [("b", 1), ("end", 1)] * 2,
        "c": [("c", 1), ("end", 1)],
    }


async def test_two_keyed_runs_share_max_concurrent(mode):
    """Each forces out its own rather than wait for the other for ever."""
    limited = per_key.options(mode=mode, max_concurrent=2)

    async def slowly(keys):
        for key in keys:
            yield key
            await asyncio.sleep(0.001)

    runs = [collect(limited.keyed(slowly("abab"), key=lambda e: e)) for _ in range(2)]
    for found in await asyncio.wait_for(asyncio.gather(*runs), HANG):
        assert set(found) == {"a", "b"}
        for key, results in found.items():
            assert sum(result[0] == key for result in results) == 2


async def test_timeout_closes_idle_keys(mode):
    timed = per_key.options(mode=mode, timeout=0.1)
    seen = []
    gone = asyncio.Event()

    async def source():
        yield "a"
        await asyncio.wait_for(gone.wait(), HANG)
        yield "a"

    async for key, result in timed.keyed(source(), key=lambda e: e):
        seen.append((key, result))
        if result[0] == "end":
            gone.set()
    assert seen == [("a", ("a", 1)), ("a", ("end", 1))] * 2


async def test_failing_function(mode, source):
    async def run():
        async for key, result in functions.fails.options(mode=mode).keyed(
            source(["x", "own", "y"]), key=lambda e: e
        ):
            seen.append((key, result))

    seen = []
    with pytest.raises(OwnError) as info:
        await run()
    assert "'own'" in "\n".join(info.value.__notes__)


async def test_results_before_a_failure_come_before_it(mode, source):
    @stream_fn(mode=mode)
    async def fails_late(events):
        async for event in events:
            yield (event, 1)
            yield (event, 2)
            raise OwnError("late")

    seen = []
    with pytest.raises(OwnError) as info:
        async for item in fails_late.keyed(source(["x"]), key=lambda e: e):
            seen.append(item)
    assert seen == [("x", ("x", 1)), ("x", ("x", 2))]
    assert info.value.__notes__[-1] == "in the stream of key 'x'"


async def test_a_key_that_never_stops_does_not_hold_back_another(mode):
    """One event makes more results than anybody can take; the next key's come between them."""

    # Another worker might get no core.
    @stream_fn(mode=mode, workers=1)
    async def repeats(events):
        async for event in events:
            yield event
            while event == "for ever":
                yield event

    seen = 0
    events = repeats.keyed(["for ever", "once"], key=lambda e: e)
    async with contextlib.aclosing(events) as running:
        async for key, _ in running:
            seen += 1
            if key == "once" or seen == 100_000:
                break
    assert key == "once"


async def test_an_event_that_its_function_awaits_something_for(mode, source):
    """A function that is stepped in the turn of whoever sends waits in its own task."""

    @stream_fn(mode=mode)
    async def waits(events):
        count = 0
        async for event in events:
            count += 1
            if event[1] % 3 == 0:
                await asyncio.sleep(0)
            async with asyncio.timeout(HANG):
                await asyncio.sleep(0.001 if event[1] % 7 == 0 else 0)
            yield (event, count, asyncio.current_task().get_name())

    found = await collect(waits.keyed(source(events(5, 20)), key=0))
    for key, results in found.items():
        assert [(event, count) for event, count, _ in results] == [
            ((key, number), number + 1) for number in range(20)
        ]
        assert len({task for _, _, task in results}) == 1


async def test_inline_functions_have_their_turn_before_the_event_loop_has(monkeypatch):
    turns = 0

    def count():
        nonlocal turns, counting
        turns += 1
        counting = loop.call_soon(count)

    @stream_fn
    async def when(events):
        async for _, number, sent in events:
            yield number, turns - sent

    def source():
        for number in itertools.count():
            if turns >= 10 and number >= 640:
                return
            yield (number % 10, number, turns)

    loop = asyncio.get_running_loop()
    # The source looks at turns of the loop, so it is read there and not in a thread.
    monkeypatch.setattr(loop, "_is_turned", True, raising=False)
    counting = loop.call_soon(count)
    found = await collect(when.keyed(source(), key=0))
    counting.cancel()
    late = [late for results in found.values() for number, late in results if number >= 100]
    # Those before are there when the functions begin, as tasks of their own.
    assert len(late) >= 540
    assert not any(late)


async def test_a_key_that_times_out_while_it_is_full(mode):
    """Whoever waits for the end of its stream does not wait for room in it."""

    @stream_fn(mode=mode, buffer=1, timeout=0.05)
    async def ends_slowly(events):
        async for event in events:
            yield event
        await asyncio.sleep(0.1)

    seen = []
    # A loop that gives nobody a turn is not ended by `asyncio.timeout`.
    with alarm(HANG):
        async for _, result in ends_slowly.keyed([(1, number) for number in range(6)], key=0):
            seen.append(result[1])
            await asyncio.sleep(0.1)
    assert seen == [0, 1, 2, 3, 4, 5]


async def test_results_that_were_taken_are_let_go_of_while_it_waits():
    gate = asyncio.Event()
    taken = []

    class Result:
        """Something that can be asked whether it is still there."""

    @stream_fn
    async def makes(events):
        async for _ in events:
            yield Result()

    async def source():
        for number in range(50):
            yield number
        await gate.wait()

    async def collect_references():
        async for _, result in makes.keyed(source(), key=lambda e: e):
            taken.append(weakref.ref(result))
            del result

    collecting = asyncio.create_task(collect_references())
    while len(taken) < 50 or not await blocked(collecting):
        await asyncio.sleep(0)
    assert sum(result() is not None for result in taken) <= 1
    gate.set()
    await collecting


async def test_failing_source(mode, tmp_path):
    path = str(tmp_path / "marks")

    @stream_fn(mode=mode)
    async def cleans(events):
        try:
            async for event in events:
                yield event
        finally:
            functions.mark(path)

    def plain():
        yield 1
        yield 2
        raise LookupError("source")

    for failing in (plain, lambda: as_async(plain())):
        with pytest.raises(LookupError, match="source"):
            async with contextlib.aclosing(cleans.keyed(failing(), key=lambda e: e)) as running:
                async for _ in running:
                    pass


async def test_failing_key_function(mode):
    with pytest.raises(ZeroDivisionError):
        await collect(functions.echo.options(mode=mode).keyed([1, 0], key=lambda e: 1 / e))


async def test_key_whose_function_has_returned_wants_no_more(mode, source):
    """As with one stream: what comes for it is dropped, its results have arrived."""
    found = await asyncio.wait_for(
        collect(functions.first_two.options(mode=mode).keyed(source(events(3, 200)), key=0)), HANG
    )
    assert found == {key: [(key, 0), (key, 1)] for key in range(3)}


async def test_backpressure_of_a_slow_consumer(mode):
    taken = 0

    def counting():
        nonlocal taken
        for number in range(10_000):
            taken += 1
            yield number

    echo = functions.echo.options(mode=mode, buffer=4)
    running = echo.keyed(counting(), key=lambda e: e % 2, max_pending=100)
    async with contextlib.aclosing(running):
        for number in range(1, 301):
            await anext(running)
            await asyncio.sleep(0)
            # What waits, and the results that are there: of one batch, and in a ring.
            assert taken <= number + 100 + 256 + 100


async def test_a_full_key_does_not_hold_back_results(mode, tmp_path):
    """One key's function is stuck; the results of another one still come."""
    path = str(tmp_path / "gate")

    @stream_fn(mode=mode, buffer=2)
    async def gated(events):
        async for event in events:
            while event[0] == "stuck" and not os.path.exists(path):
                await asyncio.sleep(0.002)
            yield event

    source = [("free", 1), ("stuck", 1), ("free", 2), *[("stuck", n) for n in range(2, 9)]]
    seen = []
    async with asyncio.timeout(HANG):
        async for key, result in gated.keyed(source, key=0):
            seen.append(result)
            if seen.count(("free", 1)) and seen.count(("free", 2)):
                functions.mark(path)
    assert sorted(seen) == sorted(source)


async def test_leaving_early_cancels_every_stream(mode, tmp_path):
    path = str(tmp_path / "marks")

    @stream_fn(mode=mode)
    async def cleans(events):
        try:
            async for event in events:
                yield event
        finally:
            functions.mark(path)

    running = cleans.keyed(as_async(events(5, 100)), key=0)
    seen = set()
    async with contextlib.aclosing(running):
        async for key, _ in running:
            seen.add(key)
            if len(seen) == 5:
                break
    assert functions.marks(path) == "xxxxx"


async def test_cancelled_while_it_waits(mode):
    async def stalls():
        yield (1, 1)
        await asyncio.Event().wait()

    async def use():
        async with contextlib.aclosing(
            functions.echo.options(mode=mode).keyed(stalls(), key=0)
        ) as running:
            async for item in running:
                seen.append(item)

    seen = []
    task = asyncio.create_task(use())
    await until(lambda: seen)
    assert await blocked(task)
    await asyncio.wait_for(cancel(task), HANG)
    assert seen == [(1, (1, 1))]
    assert await functions.echo.options(mode=mode).run([1]) == [1]


async def test_slow_async_source_does_not_hold_results_back(mode):
    gate = asyncio.Event()

    async def source():
        yield (1, "first")
        await gate.wait()
        yield (1, "second")

    seen = []
    async with asyncio.timeout(HANG):
        async for _, (_, word) in functions.echo.options(mode=mode).keyed(source(), key=0):
            seen.append(word)
            gate.set()
    assert seen == ["first", "second"]


async def test_many_keys(mode):
    found = await collect(per_key.options(mode=mode).keyed(events(300, 3), key=0))
    assert len(found) == 300
    assert all(results[-1] == ("end", 3) for results in found.values())


async def test_an_event_that_cannot_travel():
    import threading

    with pytest.raises(TypeError, match="event"):
        await collect(
            functions.echo.options(mode="process").keyed([1, threading.Lock()], key=lambda e: 1)
        )


async def test_places_come_back(mode):
    limited = functions.echo.options(mode=mode, max_concurrent=2, overflow="error")
    for _ in range(3):
        await collect(limited.keyed("abc", key=lambda e: e))
    assert await asyncio.gather(limited.run("a"), limited.run("b")) == [["a"], ["b"]]


async def test_an_error_of_the_key_names_what_gives_it_and_the_event(mode):
    async def keys(event, key):
        async for _ in functions.echo.options(mode=mode).keyed([event], key=key):
            pass

    with pytest.raises(KeyError) as info:
        await keys({"b": 2}, "user")
    assert notes(info.value) == (
        "`key` is the field `user`, which was looked up in this event: {'b': 2}"
    )

    def of_user(event):
        return event["user"]

    with pytest.raises(KeyError) as info:
        await keys({"b": 2}, of_user)
    assert "of_user` (" in notes(info.value)
    assert "test_keyed.py:" in notes(info.value)
    assert "which was called with this event: {'b': 2}" in notes(info.value)
    with pytest.raises(TypeError, match="unhashable") as info:
        await keys({"user": []}, "user")
    assert "the field `user`" in notes(info.value)


async def iterated_by_a_task(fn):
    """Results of one key that waits for its second event, and the task that waits for them."""

    async def source():
        yield "a"
        await asyncio.Event().wait()

    results = fn.keyed(source(), key=lambda event: event)
    assert await anext(results) == ("a", "a")
    iterating = asyncio.create_task(collect(results))
    assert await blocked(iterating)
    return results, iterating


async def test_another_task_may_close_it(mode, tmp_path):
    """Functions take their time to end; then the one that iterates comes to the end."""
    ended = str(tmp_path / "ended")

    @stream_fn(mode=mode)
    async def lingers(events):
        try:
            async for event in events:
                yield event
        finally:
            await asyncio.sleep(0.01)
            functions.mark(ended)

    results, iterating = await iterated_by_a_task(lingers)
    await results.aclose()
    assert os.path.exists(ended)
    assert await iterating == {}


async def test_an_iteration_that_is_cancelled_while_another_task_closes_it(mode, tmp_path, recwarn):
    """The one that closes waits as long as before, and no longer."""
    gate = str(tmp_path / "gate")

    @stream_fn(mode=mode, close_timeout=HANG)
    async def lingers(events):
        try:
            async for event in events:
                yield event
        finally:
            while not os.path.exists(gate):
                await asyncio.sleep(0.002)

    results, iterating = await iterated_by_a_task(lingers)
    closing = asyncio.create_task(results.aclose())
    assert await blocked(closing)
    await cancel(iterating)
    functions.mark(gate)
    async with asyncio.timeout(HANG / 2):
        await closing
    # A busy machine makes any step slow.
    assert not [warning for warning in recwarn if warning.category is not SlowStepWarning]
