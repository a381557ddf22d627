"""What a checkpoint keeps of keys that end, finish, fail, and are unloaded."""

import asyncio
import contextlib
import random
import shutil

import pytest

from replayed import Again, Redelivering, TakingBack, by_key, expected, sequence
from velo import stream_fn
from velo._checkpoint.store import Store
from velo._diagnostics import failpoints
from velo.connect import Record
from velo.connect.memory import MemorySink
from velo.errors import CheckpointError


async def into(mode, events, sink, path, stop=None, options=None, **settings):
    """Run to the end, or until it is stopped before batch `stop`."""
    run = sequence.options(mode=mode, **(options or {})).keyed(
        source := Again({"p": events}, batch=5), key="k"
    )

    async def pauses(number):
        if number == stop:
            run.stop()

    source.pauses = pauses
    settings = {"checkpoint_every": 0.01, **settings}
    return await run.into(sink, checkpoint=path, **settings)


def events_of(count, keys):
    return [{"k": (3 * n + n // 5) % keys, "v": n} for n in range(count)]


async def test_keys_that_are_unloaded_go_on_as_if_they_had_never_left(mode, tmp_path):
    events, sink = events_of(150, 11), TakingBack()
    options = {"max_concurrent": 3}
    await into(mode, events, sink, tmp_path, 17, options, keys="unload")
    assert all(result[0] != "end" for _, result in sink.kept)
    sink = TakingBack(sink.kept)
    await into(mode, events, sink, tmp_path, None, options, keys="unload")
    assert by_key(sink.kept) == expected(events)


async def test_idle_keys_are_unloaded(mode, tmp_path):
    events = [{"k": 0, "v": 1}] * 5 + [{"k": 1, "v": 2}] * 5 + [{"k": 0, "v": 3}] * 5
    fn = sequence.options(mode=mode, timeout=0.02)

    async def pauses(number):
        while number == 2 and fn.metrics.keys_ended == 0:
            await asyncio.sleep(0.001)

    sink, source = TakingBack(), Again({"p": events}, batch=5, pauses=pauses)
    await fn.keyed(source, key="k").into(sink, checkpoint=tmp_path, keys="unload")
    assert by_key(sink.kept) == expected(events)


@stream_fn
async def counted(events, state):
    """Counts the events of its key."""
    async for _ in events:
        state["n"] = state.get("n", 0) + 1
        yield state["n"]


class Counting:
    """A sink that counts the results of each key, and compares them with those counts."""

    name = "counting"

    def __init__(self, keys):
        self.counts = bytearray(keys)
        self.wrong = 0

    async def write(self, results):
        for key, result in results:
            self.counts[key] += 1
            self.wrong += result != self.counts[key]

    async def flush(self):
        pass


class Each:
    """A source with an event for each of some keys, behind which it stops its run.

    Args:
        fn: Whose keys they are.
        keys: The keys.
        first: The position of the first one.

    """

    name = "each"

    def __init__(self, fn, keys, first):
        self.run = fn.keyed(self, key=lambda key: key)
        self.most_open = 0
        self._fn = fn
        self._keys = keys
        self._first = first

    def seek(self, positions):
        assert positions == ({0: self._first - 1} if self._first else {})

    async def __aiter__(self):
        for start in range(0, len(self._keys), 1000):
            some = enumerate(self._keys[start : start + 1000], self._first + start)
            yield [Record(key, partition=0, position=position) for position, key in some]
            figures = self._fn.metrics
            self.most_open = max(self.most_open, figures.keys_opened - figures.keys_ended)
        self.run.stop()

    async def commit(self, positions):
        pass


async def test_many_more_keys_than_are_in_memory(mode, long, tmp_path):
    keys, most = (10_000_000, 100_000) if long else (20_000, 1_000)
    again = random.Random(1).sample(range(keys), keys // 20)
    fn, sink = counted.options(mode=mode, max_concurrent=most), Counting(keys)
    for events, first in ((range(keys), 0), (again, keys)):
        source = Each(fn, events, first)
        figures = await source.run.into(sink, checkpoint=tmp_path, keys="unload")
        assert figures.results == len(events)
        assert 0 < source.most_open <= most
        with contextlib.closing(Store(tmp_path, writes=False)) as store:
            assert store.counts() == (keys, 0)
    assert sink.wrong == 0
    assert sum(sink.counts) == keys + len(again)
    shutil.rmtree(tmp_path)  # it is large at full length


async def test_keys_that_end_for_others_begin_anew(mode, tmp_path):
    events = [{"k": k, "v": k} for k in (0, 1, 2, 0, 1)]
    sink = TakingBack()
    options = {"max_concurrent": 1}
    await into(mode, events, sink, tmp_path, None, options)
    found = by_key(sink.kept)
    assert [result[0] for result in found[0]] == [1, "end", 1, "end"]


async def test_a_function_that_has_returned_stays_so(mode, tmp_path):
    events = [{"k": 0, "v": 1}, {"k": 0, "returns": True}, {"k": 1, "v": 2}]
    later = [{"k": 0, "v": 3}, {"k": 1, "v": 4}]
    events += [{"k": 1, "v": 3}] * 2
    sink = TakingBack()
    await into(mode, [*events, *later], sink, tmp_path, 1)
    sink = TakingBack(sink.kept)
    await into(mode, [*events, *later], sink, tmp_path)
    assert [result[0] for result in by_key(sink.kept)[0]] == [1]
    assert [result[0] for result in by_key(sink.kept)[1]] == [1, 2, 3, 4, "end"]


async def test_a_key_that_fails_and_is_dropped_begins_anew_once(mode, tmp_path):
    events = [{"k": 0, "v": 1}, {"k": 0, "fails": True}, {"k": 0, "v": 2}, {"k": 1, "v": 9}]
    events += [{"k": 0, "v": 3}, {"k": 0, "v": 4}]
    sink = TakingBack()
    await into(mode, events, sink, tmp_path, 1, on_error="drop")
    sink = TakingBack(sink.kept)
    await into(mode, events, sink, tmp_path, on_error="drop")
    assert [result[0] for result in by_key(sink.kept)[0]] == [1, 1, 2, 3, "end"]


async def test_a_dead_letter_may_come_twice_and_is_never_lost(mode, tmp_path):
    events = [{"k": 0, "v": 1}, {"k": 0, "fails": True}, {"k": 0, "v": 2}]
    sink, letters = TakingBack(), MemorySink()

    def dies(_area, step):
        if step == 3 and letters.results:
            raise ConnectionError("the process dies")

    failpoints.hook = dies
    try:
        with pytest.raises(ConnectionError):
            await into(mode, events, sink, tmp_path, dead_letter=letters)
    finally:
        failpoints.hook = None
    assert len(letters.results) == letters.durable == 1
    sink = TakingBack(sink.kept)
    await into(mode, events, sink, tmp_path, dead_letter=letters)
    assert len(letters.results) == 2
    assert [result[0] for result in by_key(sink.kept)[0]] == [1, 1, "end"]


async def test_a_key_that_fails_ends_the_run_and_comes_again(mode, tmp_path):
    events = [{"k": 0, "v": n} for n in range(7)]
    broken = [*events[:6], {"k": 0, "fails": True}]
    sink = TakingBack()
    for _ in range(2):
        with pytest.raises(ValueError, match="refused"):
            await into(mode, broken, sink, tmp_path)
        sink = TakingBack(sink.kept)
    await into(mode, events, sink, tmp_path)
    assert by_key(sink.kept) == expected(events)


async def test_records_that_come_again_elsewhere_in_the_order_are_known(mode, tmp_path):
    events, sink = events_of(30, 4), TakingBack()

    async def dies(number):
        if number == 20:
            while source.left and min(source.left) < 5:
                await asyncio.sleep(0.001)
            raise ConnectionError("the broker is gone")

    source = Redelivering(events, dies)
    fn = sequence.options(mode=mode)
    with pytest.raises(ConnectionError):
        await fn.keyed(source, key="k").into(sink, checkpoint=tmp_path, checkpoint_every=0.01)
    # All of it comes again, as if the broker had heard of no commit.
    sink = TakingBack(sink.kept)
    await fn.keyed(Redelivering(events), key="k").into(sink, checkpoint=tmp_path)
    assert by_key(sink.kept) == expected(events)


async def test_a_collection_is_read_again_behind_its_position(mode, tmp_path):
    events, sink = events_of(40, 3), TakingBack()
    fn = sequence.options(mode=mode)
    await fn.keyed(events, key="k").into(sink, checkpoint=tmp_path)
    sink = TakingBack(sink.kept)
    figures = await fn.keyed([*events, {"k": 5, "v": 1}], key="k").into(sink, checkpoint=tmp_path)
    assert figures.read == 1
    assert by_key(sink.kept) == expected([*events, {"k": 5, "v": 1}])


async def test_over_keeps_its_state(mode, tmp_path):
    events, sink = [{"k": None, "v": n} for n in range(20)], TakingBack()
    fn = sequence.options(mode=mode)
    run = fn.over(source := Again({"p": events}, batch=5))

    async def pauses(number):
        if number == 2:
            run.stop()

    source.pauses = pauses
    await run.into(sink, checkpoint=tmp_path)
    assert len(sink.kept) == 10
    sink = TakingBack(sink.kept)
    await fn.over(Again({"p": events}, batch=5)).into(sink, checkpoint=tmp_path)
    assert by_key(sink.kept) == expected(events)


async def test_a_function_without_state_is_refused(mode, tmp_path):
    @stream_fn(mode=mode)
    async def stateless(events):
        async for event in events:
            yield event

    with pytest.raises(ValueError, match="stateless` has no `state`"):
        await stateless.keyed([1], key=str).into(MemorySink(), checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"keys": "forget"}, "`keys` must be `end` or `unload`"),
        ({"checkpoint_every": 0}, "`checkpoint_every` must be"),
        ({"ttl": 0}, "`ttl` must be"),
    ],
)
async def test_settings_out_of_range_are_refused(settings, error, tmp_path):
    with pytest.raises(ValueError, match=error):
        await sequence.keyed([], key="k").into(MemorySink(), checkpoint=tmp_path, **settings)


async def test_settings_of_a_checkpoint_without_one_are_refused():
    with pytest.raises(ValueError, match="give `checkpoint=` too"):
        await sequence.keyed([], key="k").into(MemorySink(), keys="unload")


async def test_two_runs_cannot_share_a_checkpoint(tmp_path):
    gate = asyncio.Event()

    async def waits(_number):
        await gate.wait()

    fn = sequence.keyed(Again({"p": [{"k": 1, "v": 1}]}, pauses=waits), key="k")
    task = asyncio.create_task(fn.into(TakingBack(), checkpoint=tmp_path))
    while not (tmp_path / "state.sqlite").exists():
        await asyncio.sleep(0.001)
    with pytest.raises(CheckpointError, match="in use"):
        await sequence.keyed([], key="k").into(MemorySink(), checkpoint=tmp_path)
    gate.set()
    await task
    await sequence.keyed([], key="k").into(MemorySink(), checkpoint=tmp_path)
