"""Many keys of one function: what each of them is to itself, and what none does to another."""

import asyncio
import contextlib
import contextvars
import os
import weakref

import pytest

import functions
from functions import OwnError
from helpers import HANG, until
from key_sums import collect
from velo import stream_fn
from velo.errors import EventTimeout, StreamClosed
from velo.events import TICK

number_of = contextvars.ContextVar("number_of", default=0)
name_of = contextvars.ContextVar("name_of", default=None)
gathered = contextvars.ContextVar("gathered", default=None)
filed = weakref.WeakKeyDictionary()


def events(keys, count):
    return [(key, number) for number in range(count) for key in range(keys)]


async def test_any_number_of_keys(mode):
    """More than a worker has slots for streams."""

    @stream_fn(mode=mode)
    async def count(events):
        number = 0
        async for _ in events:
            number += 1
            yield number
        yield -number

    found = dict.fromkeys(range(40_000), 0)
    async for key, result in count.keyed(events(40_000, 2), key=0):
        found[key] += result
    assert set(found.values()) == {1}  # 1 and 2, and then -2


async def test_a_slow_key_holds_up_no_other(mode, tmp_path):
    """Far more of its events come than it may have at a time."""
    gate = str(tmp_path / "gate")

    @stream_fn(mode=mode, buffer=4)
    async def gated(events):
        async for key, number in events:
            while key == 0 and not os.path.exists(gate):
                await asyncio.sleep(0.001)
            yield number

    seen = {key: [] for key in range(50)}
    async with asyncio.timeout(HANG):
        async for key, number in gated.keyed(events(50, 60), key=0):
            seen[key].append(number)
            others = sum(map(len, seen.values())) - len(seen[0])
            if others == 49 * 60 and not os.path.exists(gate):
                assert not seen[0]
                functions.mark(gate)
    assert all(results == list(range(60)) for results in seen.values())


async def test_all_keys_wait_at_once(mode):
    """Each of them is a task of its own then."""

    @stream_fn(mode=mode)
    async def waits(events):
        async for _, number in events:
            before = asyncio.current_task()
            await asyncio.sleep(0.001)
            assert asyncio.current_task() is before
            yield number

    found = await collect(waits.keyed(events(300, 3), key=0))
    assert found == {key: [0, 1, 2] for key in range(300)}


async def test_a_deadline_of_a_key_is_its_own(mode):
    """A timeout that is entered at one event and over at another cancels that key alone."""

    @stream_fn(mode=mode)
    async def timed(events):
        try:
            async with asyncio.timeout(0.05):
                async for event in events:
                    yield event
        except TimeoutError:
            yield "late"
        async for event in events:
            yield event

    async def source():
        for key in range(5):
            yield key
        await asyncio.wait_for(late.wait(), HANG)
        for key in range(5):
            yield key

    late = asyncio.Event()
    seen = []
    async for item in timed.keyed(source(), key=lambda event: event):
        seen.append(item)
        if sum(result == "late" for _, result in seen) == 5:
            late.set()
    for key in range(5):
        assert [result for k, result in seen if k == key] == [key, "late", key]


async def test_a_task_that_a_key_knows_stays_its_own(mode):
    @stream_fn(mode=mode)
    async def knows(events):
        mine = asyncio.current_task()
        async for _ in events:
            yield asyncio.current_task() is mine and id(mine)

    found = await collect(knows.keyed(events(20, 5), key=0))
    tasks = {results[0] for results in found.values()}
    assert False not in tasks
    assert all(len(set(results)) == 1 for results in found.values())
    if mode == "inline":
        assert len(tasks) == 20


@stream_fn
async def sets(events):
    async for key, number in events:
        before = number_of.get()
        if key % 2:
            number_of.set(before + 1)
        yield before, number


async def test_context_variables_of_a_key_are_its_own(mode):
    found = await collect(sets.options(mode=mode).keyed(events(10, 20), key=0))
    for key, results in found.items():
        assert results == [(number if key % 2 else 0, number) for number in range(20)]
    assert number_of.get() == 0


@stream_fn
async def sets_back(events):
    async for key, _ in events:
        token = number_of.set(key + 1)
        await asyncio.sleep(0)
        yield number_of.get()
        number_of.reset(token)


async def test_a_variable_that_is_set_back(mode):
    found = await collect(sets_back.options(mode=mode).keyed(events(10, 5), key=0))
    assert found == {key: [key + 1] * 5 for key in range(10)}


@stream_fn
async def sets_at_last(events):
    async for key, event in events:
        if event == "set back":
            number_of.reset(number_of.set(1))
        elif event == "set":
            number_of.set(2)
            name_of.set(key)
        yield number_of.get(), name_of.get()


async def test_variables_that_are_set_once_others_were_set_back(mode):
    source = [("a", "set back"), ("a", "set"), ("b", "look")]
    found = await collect(sets_at_last.options(mode=mode).keyed(source, key=0))
    assert found == {"a": [(0, None), (2, "a")], "b": [(0, None)]}


@stream_fn
async def gathers(events):
    gathered.set([])
    async for event in events:
        if event:
            gathered.get().append(event)
        yield list(gathered.get())


async def test_values_that_are_equal_are_not_the_same(mode):
    mine = []
    gathered.set(mine)
    found = {"a": [], "b": []}
    async with gathers.options(mode=mode).keys() as keys:
        for key, event in [("a", 0), ("b", 0), ("a", 1), ("b", 2), ("a", 0)]:
            found[key] += await keys.request(key, event)
    assert found == {"a": [[], [1], [1]], "b": [[], [2]]}
    assert mine == []


@stream_fn
async def files(events):
    async for key, _ in events:
        of_task = filed.setdefault(asyncio.current_task(), [])
        of_task.append(key)
        yield list(of_task)


async def test_what_a_key_files_under_its_task_is_its_own(mode):
    """Also by a weak reference."""
    found = await collect(files.options(mode=mode).keyed(events(3, 3), key=0))
    assert found == {key: [[key] * count for count in (1, 2, 3)] for key in range(3)}


async def test_a_task_of_a_function_takes_its_events(mode):
    @stream_fn(mode=mode)
    async def apart(events):
        while True:
            try:
                event = await asyncio.create_task(anext(events))
            except StopAsyncIteration:
                return
            yield event

    found = await collect(apart.keyed(events(5, 20), key=0))
    assert found == {key: [(key, number) for number in range(20)] for key in range(5)}


async def test_a_task_group_within_a_key(mode):
    @stream_fn(mode=mode)
    async def groups(events):
        async for _, number in events:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(asyncio.sleep(0, number + n)) for n in range(3)]
            yield [task.result() for task in tasks]

    found = await collect(groups.keyed(events(10, 4), key=0))
    assert found == {key: [[n, n + 1, n + 2] for n in range(4)] for key in range(10)}


async def test_any_number_of_results(mode):
    @stream_fn(mode=mode)
    async def repeats(events):
        yield "first"
        async for _, number in events:
            for _ in range(number * 100):
                yield number
        yield "last"

    found = await collect(repeats.keyed(events(8, 4), key=0))
    expected = ["first", *[1] * 100, *[2] * 200, *[3] * 300, "last"]
    assert found == dict.fromkeys(range(8), expected)


async def test_keys_are_told_apart_as_those_of_a_dict(mode):
    """Equal ones are one key; NaN is equal to itself alone; None is a key."""

    @stream_fn(mode=mode)
    async def count(events):
        number = 0
        async for _ in events:
            number += 1
        yield number

    class Same:
        def __eq__(self, other):
            return isinstance(other, Same)

        def __hash__(self):
            return 7

    class Text(str):
        __slots__ = ()

    nan, same = float("nan"), Same()
    keys = [1, True, 1.0, None, "a", Text("a"), (1, "x"), (1.0, "x"), nan, nan, float("nan")]
    keys += [same, Same(), 7]
    sent = list(range(len(keys)))
    found = [item async for item in count.keyed(sent, key=lambda event: keys[event])]
    assert len(found) == 8
    alone = dict(found)
    assert (alone[1], alone[None], alone["a"], alone[1, "x"], alone[same], alone[7]) == (
        *(3, 1, 2, 2, 2, 1),
    )
    assert sorted(number for key, number in found if key != key) == [1, 2]


async def test_a_key_that_cannot_be_compared(mode):
    class Wrong:
        def __eq__(self, other):
            raise OwnError("compared")

        def __hash__(self):
            return 1

    keys = [Wrong(), Wrong()]
    with pytest.raises(OwnError):
        await collect(functions.echo.options(mode=mode).keyed([0, 1], key=lambda e: keys[e]))


@pytest.mark.parametrize("key", ["user", lambda event: [event], lambda event: 1 / 0])
async def test_an_event_whose_key_cannot_be_found_is_named(mode, key):
    with pytest.raises((KeyError, TypeError, ZeroDivisionError)) as info:
        await collect(functions.echo.options(mode=mode).keyed([{"name": "Ada"}], key=key))
    assert "{'name': 'Ada'}" in info.value.__notes__[-1]


@stream_fn
async def fails_at_three(events):
    number = 0
    async for event in events:
        number += 1
        if event[1] == 3:
            raise OwnError(event[0])
        yield number


async def test_a_key_that_fails_may_be_dropped(mode):
    fn = fails_at_three.options(mode=mode)
    source = [(key, number if key == 1 else 0) for number in range(8) for key in range(3)]
    found = await collect(fn.keyed(source, key=0, on_error="drop"))
    assert found[0] == found[2] == list(range(1, 9))
    # What waited for the key is gone with it; what came later has begun anew.
    assert found[1][:3] == [1, 2, 3]
    assert found[1][3:] == list(range(1, len(found[1]) - 2))


async def test_a_callable_gets_the_key_and_the_error(mode):
    failed = []
    fn = fails_at_three.options(mode=mode)
    source = [(key, 3) for key in range(4)]
    assert await collect(fn.keyed(source, key=0, on_error=lambda *of: failed.append(of))) == {}
    assert sorted((key, error.args[0]) for key, error in failed) == [(n, n) for n in range(4)]
    assert all(isinstance(error, OwnError) for _, error in failed)


async def test_what_a_callable_raises_ends_it(mode):
    def refuse(key, error):
        raise LookupError(key) from error

    with pytest.raises(LookupError):
        fn = fails_at_three.options(mode=mode)
        await collect(fn.keyed([(1, 3)], key=0, on_error=refuse))


async def test_what_becomes_of_keys_whose_function_has_returned(mode):
    @stream_fn(mode=mode)
    async def first(events):
        async for event in events:
            yield event
            return

    async def source():
        for number in range(5):
            yield (1, number)
            # The end of one is known before the next one comes.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.05)

    ignored = await collect(first.keyed(source(), key=0))
    assert ignored == {1: [(1, 0)]}
    again = await collect(first.keyed(source(), key=0, finished_keys="restart"))
    assert again == {1: [(1, number) for number in range(5)]}
    with pytest.raises(StreamClosed, match="key 1"):
        await collect(first.keyed(source(), key=0, finished_keys="raise"))


@pytest.mark.parametrize("buffer", [1, 8], ids=["few", "all"])
async def test_events_that_a_function_has_left_raise(mode, buffer):
    """They were sent to it, or wait for that, and nothing comes after them."""

    @stream_fn(mode=mode, buffer=buffer)
    async def first(events):
        async for event in events:
            yield event
            return

    with pytest.raises(StreamClosed, match="key 1, whose function has returned"):
        await collect(first.keyed([(1, n) for n in range(5)], key=0, finished_keys="raise"))
    assert await collect(first.keyed([(1, 0)], key=0, finished_keys="raise")) == {1: [(1, 0)]}


async def test_a_function_that_takes_no_event_is_not_run_anew_for_ever(mode):
    @stream_fn(mode=mode)
    async def ready(events):
        yield "ready"

    told = []
    seen = ready.keyed(
        [("a", 0), ("b", 1)],
        key=0,
        finished_keys="restart",
        on_error=lambda *what: told.append(what),
    )
    assert await collect(seen) == {"a": ["ready"], "b": ["ready"]}
    assert sorted(key for key, _ in told) == ["a", "b"]
    assert all("without taking the event" in str(error) for _, error in told)
    async with ready.keys(finished_keys="restart", on_error="drop") as keys:
        with pytest.raises(StreamClosed, match="without taking the event"):
            await keys.request("a", ("a", 0))


@pytest.mark.parametrize(
    "wrong", [{"max_pending": 0}, {"on_error": "ignore"}, {"finished_keys": "drop"}]
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        functions.echo.keyed([], key=0, **wrong)


async def test_leaving_early_runs_the_finally_blocks_of_all(mode, tmp_path):
    """Of those that wait for an event, of those that wait for something else, and of no other."""
    path = str(tmp_path / "marks")

    @stream_fn(mode=mode)
    async def cleans(events):
        try:
            async for key, _ in events:
                yield key
                if key % 3 == 0:
                    await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            functions.mark(path)

    async def source():
        for event in events(90, 2):
            yield event
        await asyncio.Event().wait()

    async with contextlib.aclosing(cleans.keyed(source(), key=0)) as running:
        seen = set()
        async for key, _ in running:
            seen.add(key)
            if len(seen) == 90:
                break
    assert functions.marks(path) == "x" * 90


def test_an_event_loop_that_ends_first_closes_them(mode, tmp_path):
    path = str(tmp_path / "marks")

    @stream_fn(mode=mode)
    async def cleans(events):
        try:
            async for event in events:
                yield event
        finally:
            functions.mark(path)

    kept = []

    async def main():
        running = cleans.keyed([(1, 1), (2, 2)], key=0)
        kept.append(running)
        await anext(running)
        await anext(running)

    asyncio.run(main())
    assert functions.marks(path) == "xx"


async def test_an_iteration_that_is_dropped_closes_them(mode, tmp_path):
    path = str(tmp_path / "marks")

    @stream_fn(mode=mode)
    async def cleans(events):
        try:
            async for event in events:
                yield event
        finally:
            functions.mark(path)

    async for _ in cleans.keyed([(1, 1), (2, 2)], key=0):
        break
    await until(lambda: "x" in functions.marks(path))


async def test_ticks_of_a_key(mode):
    @stream_fn(mode=mode)
    async def ticks(events):
        async for event in events.ticks(0.02):
            yield "tick" if event is TICK else event

    async def source():
        yield 1
        yield 2
        await asyncio.wait_for(both.wait(), HANG)
        yield 1

    both = asyncio.Event()
    found = {}
    async for key, result in ticks.keyed(source(), key=lambda event: event):
        found.setdefault(key, []).append(result)
        if all("tick" in found.get(key, ()) for key in (1, 2)):
            both.set()
    assert [result for result in found[1] if result != "tick"] == [1, 1]
    assert [result for result in found[2] if result != "tick"] == [2]


async def test_a_key_that_takes_too_long_for_an_event(mode):
    # A worker may wait for a core meanwhile. The supervisor would end it after a shorter limit.
    @stream_fn(mode=mode, event_timeout=1)
    async def sleeps(events):
        async for key in events:
            if key == 1:
                await asyncio.sleep(1000)
            yield key

    failed = []
    found = await collect(
        sleeps.keyed([0, 1, 2], key=lambda e: e, on_error=lambda *of: failed.append(of))
    )
    assert found == {0: [0], 2: [2]}
    ((key, error),) = failed
    assert key == 1
    assert isinstance(error, EventTimeout)


async def test_a_composed_function_is_one_for_each_key(mode):
    @stream_fn(mode=mode)
    async def sums(events):
        total = 0
        async for _, number in events:
            total += number
            yield total

    @stream_fn(mode=mode)
    async def doubled(events):
        async for number in events:
            yield 2 * number

    found = await collect((sums | doubled).keyed(events(10, 4), key=0))
    assert found == {key: [0, 2, 6, 12] for key in range(10)}


async def test_a_function_with_a_state(mode):
    @stream_fn(mode=mode)
    async def counts(events, state):
        async for _ in events:
            state["n"] = state.get("n", 0) + 1
            yield state["n"]

    found = await collect(counts.keyed(events(10, 4), key=0))
    assert found == {key: [1, 2, 3, 4] for key in range(10)}


async def test_events_that_come_apart_inside_a_worker():
    """What cannot be read there is an error of its key."""
    failed = []
    found = await collect(
        functions.echo.options(mode="process").keyed(
            [(0, 1), (1, Unreadable()), (0, 2)],
            key=0,
            on_error=lambda key, error: failed.append((key, type(error))),
        )
    )
    assert found == {0: [(0, 1), (0, 2)]}
    assert failed == [(1, OwnError)]


async def test_large_arrays_arrive_as_copies():
    np = pytest.importorskip("numpy")

    @stream_fn(mode="process", buffer=2)
    async def keeps(events):
        kept = []
        async for _, array in events:
            kept.append(array)
            yield array + 1

    array = np.arange(200_000)
    source = [(key, array + key) for _ in range(3) for key in range(4)]
    async for key, result in keeps.keyed(source, key=0, max_pending=4):
        assert (result == array + key + 1).all()


class Unreadable:
    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise OwnError("read")
