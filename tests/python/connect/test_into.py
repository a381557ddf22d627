"""`into`, `over`, and iterating over sources: what is committed, and when a run ends."""

import asyncio
import collections
import gc

import pytest

from helpers import until
from scripted import Scripted, counts, records
from velo import connect, stream_fn
from velo.connect import Record
from velo.connect.memory import MemorySink, MemorySource
from velo.errors import PoolError, StreamBusy


async def test_all_results_arrive_and_all_positions_are_committed(mode):
    source = MemorySource(
        {"a": [{"k": n % 7} for n in range(500)], "b": [{"k": 7 + n % 3} for n in range(300)]}
    )
    sink = MemorySink()
    figures = await counts.options(mode=mode).keyed(source, key="k").into(sink)
    assert source.committed == {"a": 499, "b": 299}
    assert sink.durable == len(sink.results) == figures.results == figures.read == 800
    by_key = collections.defaultdict(list)
    for key, (_, number, _) in sink.results:
        by_key[key].append(number)
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in by_key.values())


async def test_iterating_commits_what_was_taken(mode):
    source = MemorySource({"a": [{"k": n % 3} for n in range(50)]})
    taken = [item async for item in counts.options(mode=mode).keyed(source, key="k")]
    assert len(taken) == 50
    assert source.committed == {"a": 49}


async def test_leaving_early_commits_nothing_beyond_what_was_taken(mode):
    source = MemorySource({"a": [{"k": 0} for _ in range(50)]}, batch=10)
    run = counts.options(mode=mode).keyed(source, key="k")
    async for _key, (_, number, _) in run:
        if number == 5:
            break
    await run.aclose()
    assert source.committed.get("a", -1) < 5


async def test_over_is_one_stream(mode):
    source = MemorySource({"a": [{"k": n} for n in range(20)]})
    results = [result async for result in counts.options(mode=mode).over(source)]
    assert [number for _, number, _ in results] == list(range(1, 21))
    sink = MemorySink()
    await counts.options(mode=mode).over([{"k": 1}, {"k": 2}]).into(sink)
    assert [result[:2] for _, result in sink.results] == [(1, 1), (2, 2)]


async def test_a_plain_iterable_goes_into_a_sink_as_well(mode):
    sink = MemorySink()
    fn = counts.options(mode=mode)
    await fn.keyed(({"k": n % 2} for n in range(10)), key="k").into(sink)

    async def late():
        for n in range(10):
            await asyncio.sleep(0)
            yield {"k": n % 2}

    await fn.keyed(late(), key="k").into(sink)
    assert len(sink.results) == 20


async def test_the_key_of_the_record_itself(mode):
    source = Scripted([Record({"k": n}, key=b"ab"[n % 2 :][:1], position=n) for n in range(6)])
    sink = MemorySink()
    await counts.options(mode=mode).keyed(source, key=connect.record_key).into(sink)
    assert {key for key, _ in sink.results} == {b"a", b"b"}


async def test_nothing_is_committed_before_the_sink_has_it():
    gate = asyncio.Event()

    class Slow(MemorySink):
        async def flush(self):
            await gate.wait()
            await super().flush()

    source = MemorySource({"a": [{"k": 1}] * 10})
    sink = Slow()
    task = asyncio.create_task(counts.keyed(source, key="k").into(sink, commit_every=0.01))
    while len(sink.results) < 10:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert source.committed == {}
    gate.set()
    await task
    assert source.committed == {"a": 9}


async def test_one_object_that_is_source_and_sink_is_flushed_before_it_is_closed(mode):
    """Also a result of the end, which no position waits for."""

    class Both(MemorySink, MemorySource):
        def __init__(self, records):
            MemorySink.__init__(self)
            MemorySource.__init__(self, {"a": records})
            self.durable_at_close = None

        async def __aiter__(self):
            async for batch in super().__aiter__():
                yield batch
            await until(lambda: self.committed == {"a": 2})

        async def close(self):
            if self.durable_at_close is None:
                self.durable_at_close = self.durable

    @stream_fn(mode=mode)
    async def total(numbers):
        yield sum([number async for number in numbers])

    both = Both([1, 2, 3])
    await total.over(both).into(both, commit_every=0.001)
    assert [value for _, value in both.results] == [6]
    assert both.durable_at_close == 1


async def test_a_sink_that_fails_ends_the_run_without_a_commit():
    class Full(MemorySink):
        async def flush(self):
            raise OSError("no space left on device")

    source = MemorySource({"a": [{"k": 1}] * 10})
    with pytest.raises(OSError, match="no space left"):
        await counts.keyed(source, key="k").into(Full())
    assert source.committed == {}


async def test_a_source_that_fails_ends_the_run(mode):
    async def fails():
        raise ConnectionError("the server is gone")

    source = Scripted(records("a", [{"k": 1}] * 3), fails)
    with pytest.raises(ConnectionError, match="the server is gone"):
        await counts.options(mode=mode).keyed(source, key="k").into(MemorySink())
    assert source.calls[-1] == ("close", None)


async def test_a_function_that_returns_early_has_handled_what_it_ignores(mode):
    @stream_fn(mode=mode)
    async def first_two(events):
        number = 0
        async for event in events:
            yield event
            number += 1
            if number == 2:
                return

    source, sink = MemorySource({"a": list(range(100))}), MemorySink()
    await first_two.keyed(source, key=lambda _: 0).into(sink)
    assert [value for _, value in sink.results] == [0, 1]
    assert source.committed == {"a": 99}


async def test_stop_handles_what_was_read(mode):
    more = asyncio.Event()

    source = Scripted(records("p", [{"k": n} for n in range(20)]), more.wait)
    sink = MemorySink()
    run = counts.options(mode=mode).keyed(source, key="k")
    task = asyncio.create_task(run.into(sink))
    while len(sink.results) < 20:
        await asyncio.sleep(0.001)
    run.stop()
    await task
    assert source.committed == {"p": 19}
    assert source.calls[-1] == ("close", None)


async def test_evicted_and_idle_keys_keep_positions_right(mode):
    source = MemorySource({"a": [{"k": n % 20} for n in range(400)]})
    fn = counts.options(mode=mode, max_concurrent=4, buffer=2)
    sink = MemorySink()
    await fn.keyed(source, key="k").into(sink)
    assert len(sink.results) == 400
    assert source.committed == {"a": 399}


async def test_a_sink_is_called_once_at_a_time(mode):
    calls = []

    class Watched(MemorySink):
        async def _alone(self, what):
            assert not calls, f"{what} during {calls}"
            calls.append(what)
            await asyncio.sleep(0.005)
            calls.clear()

        async def write(self, results):
            await self._alone("write")
            await super().write(results)

        async def flush(self):
            await self._alone("flush")
            await super().flush()

    source = MemorySource({"a": [{"k": n % 7} for n in range(2000)]}, batch=20)
    sink = Watched()
    fn = counts.options(mode=mode)
    await fn.keyed(source, key="k", max_pending=50).into(sink, commit_every=0.001)
    assert sink.durable == 2000


async def test_two_tasks_that_iterate(mode):
    results = counts.options(mode=mode).over(MemorySource({"a": [{"k": 1}] * 3}))
    first = asyncio.ensure_future(anext(results))
    await asyncio.sleep(0)
    with pytest.raises(StreamBusy, match="another task iterates"):
        await anext(results)
    assert await first == (1, 1, 0)
    assert [number async for _, number, _ in results] == [2, 3]


async def test_an_iteration_that_is_dropped_closes_its_source(mode):
    wrong = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
    source = Scripted([Record({"k": 1}, position=n) for n in range(100)])
    results = counts.options(mode=mode).over(source)
    async for _ in results:
        break
    del results
    gc.collect()
    async with asyncio.timeout(30):
        while source.calls[-1] != ("close", None):
            await asyncio.sleep(0.001)
    gc.collect()
    await asyncio.sleep(0)
    assert wrong == []


@pytest.mark.parametrize("method", ["write", "flush", "close", "commit", "__aiter__"])
async def test_what_is_waited_for_is_said(monkeypatch, caplog, mode, method):
    monkeypatch.setattr("velo._api.patience._LOOK_AFTER", 0.01)
    source, sink = MemorySource({"a": [{"k": 1}]}), MemorySink()
    sink.name = "the sink"

    what = "the end" if method == "__aiter__" else f"`{method}`"

    async def told():
        while f"for {what} of" not in caplog.text:
            await asyncio.sleep(0.001)

    async def waits(*_):
        await told()

    async def stubborn():
        yield [Record({"k": 1}, position=0)]
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await told()
            raise

    endpoint, name = (sink, "the sink") if method in ("write", "flush", "close") else (source, "")
    if method == "__aiter__":
        monkeypatch.setattr(MemorySource, "__aiter__", lambda _: stubborn())
    else:
        monkeypatch.setattr(endpoint, method, waits, raising=False)
    fn = counts.options(mode=mode)
    running = asyncio.ensure_future(fn.keyed(source, key="k").into(sink))
    if method == "__aiter__":
        async with asyncio.timeout(30):
            while not sink.results:
                await asyncio.sleep(0.001)
        running.cancel()
    await asyncio.wait([running])
    assert f"for {what} of `{name or 'memory'}`" in caplog.text


async def test_a_source_that_is_cancelled_from_within_fails(mode):
    async def cancelled():
        raise asyncio.CancelledError

    source = Scripted([Record({"k": 1}, position=0)], cancelled)
    with pytest.raises(RuntimeError, match="the source `scripted` was cancelled from within"):
        await counts.options(mode=mode).over(source).into(MemorySink())


async def test_results_without_a_position_are_flushed(mode):
    @stream_fn(mode=mode)
    async def total(events):
        yield len([event async for event in events])

    sink = MemorySink()
    await total.over(MemorySource({"a": [1]})).into(sink)
    assert sink.durable == len(sink.results) == 1


async def test_a_worker_that_does_not_come_is_waited_for_aloud(monkeypatch, caplog):
    monkeypatch.setattr("velo._api.patience._LOOK_AFTER", 0.01)

    class Client:
        async def open_lane(self, *_):
            while "for a worker of `counts`" not in caplog.text:
                await asyncio.sleep(0.001)
            raise PoolError("it never came")

    monkeypatch.setattr("velo._process.clients.client_of", lambda *_: Client())
    run = counts.options(mode="process").keyed(MemorySource({"a": [{"k": 1}]}), key="k")
    async with asyncio.timeout(30):
        with pytest.raises(PoolError, match="it never came"):
            await run.into(MemorySink())
