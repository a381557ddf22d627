"""`into`, `over`, and iterating over sources: what is committed, and what becomes of what fails."""

import asyncio
import collections
import gc
import json
import os
import signal

import pytest

from velo import connect, stream_fn
from velo.connect import Assigned, Bad, Lost, Record, Revoked
from velo.connect.memory import MemorySink, MemorySource
from velo.errors import PoolError, StreamBusy


@stream_fn
async def counts(events):
    """Counts per key, and says at the end how far it came."""
    number = 0
    async for event in events:
        if event.get("fails"):
            raise ValueError("refused")
        number += 1
        yield event["k"], number, events.record.position


class Scripted:
    """A source that gives what a test says, and notes what is asked of it."""

    name = "scripted"

    def __init__(self, *items):
        self.items = items
        self.calls = []
        self.committed = {}

    async def __aiter__(self):
        for item in self.items:
            if callable(item):
                await item()
                continue
            self.calls.append(("give", item))
            yield item

    async def commit(self, positions):
        self.calls.append(("commit", dict(positions)))
        self.committed.update(positions)

    async def close(self):
        self.calls.append(("close", None))


def waiting(mode, gate, slow):
    """A function whose event `slow` waits until the file `gate` is there."""

    @stream_fn(mode=mode)
    async def waits(events):
        async for event in events:
            while event == slow and not gate.exists():
                await asyncio.sleep(0.001)
            yield event

    return waits


def records(partition, values, first=0):
    return [Record(v, partition=partition, position=first + i) for i, v in enumerate(values)]


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


async def test_a_position_waits_for_all_before_it(mode, tmp_path):
    gate, more = tmp_path / "gate", asyncio.Event()
    source = Scripted(records("p", [1, 0, 2, 3, 4]), more.wait)
    sink = MemorySink()
    run = waiting(mode, gate, 0).keyed(source, key=lambda event: event)
    task = asyncio.create_task(run.into(sink, commit_every=0.01))
    while source.committed.get("p") != 0:  # event 1 lies at position 0
        await asyncio.sleep(0.001)
    while len(sink.results) < 4:
        await asyncio.sleep(0.001)
    for _ in range(20):
        await asyncio.sleep(0.005)
        assert source.committed == {"p": 0}
    gate.touch()
    while source.committed != {"p": 4}:
        await asyncio.sleep(0.001)
    more.set()
    await task


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


async def test_a_failing_record_ends_the_run_and_is_named(mode):
    source = MemorySource({"a": [{"k": 1}, {"k": 2, "fails": True}, {"k": 1}]})
    with pytest.raises(ValueError, match="refused") as caught:
        await counts.options(mode=mode).keyed(source, key="k").into(MemorySink())
    notes = " ".join(caught.value.__notes__)
    assert "position 1 of 'a'" in notes
    assert "key 2" in notes


async def test_a_poisonous_record_goes_to_the_dead_letters_and_blocks_nobody(mode):
    values = [{"k": n % 3} for n in range(60)]
    values[30]["fails"] = True  # of key 0
    source, sink, dead = MemorySource({"a": values}), MemorySink(), MemorySink()
    fn = counts.options(mode=mode)
    figures = await fn.keyed(source, key="k").into(sink, dead_letter=dead)
    assert source.committed == {"a": 59}
    assert figures.dead_letters == 1
    ((key, letter),) = dead.results
    assert key == 0
    assert letter.value["position"] == 30
    assert letter.value["partition"] == "a"
    assert letter.value["value"] == {"k": 0, "fails": True}
    assert letter.value["error"] == "ValueError: refused"
    numbers = {k: [number for key, (_, number, _) in sink.results if key == k] for k in range(3)}
    assert numbers[1] == numbers[2] == list(range(1, 21))
    assert numbers[0] == [*range(1, 11), *range(1, 10)]  # it begins anew behind the bad one


async def test_what_cannot_be_decoded_and_what_has_no_key(mode):
    broken = Bad(Record(b"{", partition="a", position=1), ValueError("no JSON"))
    source = Scripted(
        [*records("a", [{"k": 1}]), broken, *records("a", [{"x": 1}, {"k": 1}], first=2)]
    )
    sink, dead = MemorySink(), MemorySink()
    await counts.options(mode=mode).keyed(source, key="k").into(sink, dead_letter=dead)
    assert [letter.value["position"] for _, letter in dead.results] == [1, 2]
    assert dead.results[0][1].value["value"] == "{"
    assert "KeyError" in dead.results[1][1].value["error"]
    assert len(sink.results) == 2
    assert source.committed == {"a": 3}


@pytest.mark.parametrize("how", ["drop", "call"])
async def test_on_error_without_dead_letters(mode, how):
    called = []
    source = MemorySource({"a": [{"k": 1}, {"k": 1, "fails": True}, {"k": 1}]})
    on_error = "drop" if how == "drop" else lambda key, error: called.append((key, str(error)))
    fn = counts.options(mode=mode)
    figures = await fn.keyed(source, key="k").into(MemorySink(), on_error=on_error)
    assert (figures.dropped, source.committed) == (1, {"a": 2})
    assert called == ([] if how == "drop" else [(1, "refused")])


async def test_retries_keep_the_order_of_the_key(tmp_path, mode):
    marks = tmp_path / "marks"

    @stream_fn(mode=mode)
    async def flaky(events):
        async for event in events:
            if event == 3:
                with open(marks, "a") as file:
                    file.write("x")
                if len(marks.read_text()) < 3:
                    raise OSError("try again")
            yield event

    source, sink, dead = MemorySource({"a": list(range(8))}), MemorySink(), MemorySink()
    run = flaky.keyed(source, key=lambda _: "all")
    figures = await run.into(sink, dead_letter=dead, retries=5)
    assert [value for _, value in sink.results] == list(range(8))
    assert (figures.retried, dead.results) == (2, [])


async def test_retries_come_to_an_end(mode):
    source, dead = MemorySource({"a": [{"k": 1, "fails": True}, {"k": 1}]}), MemorySink()
    sink = MemorySink()
    fn = counts.options(mode=mode)
    figures = await fn.keyed(source, key="k").into(sink, dead_letter=dead, retries=1)
    assert (figures.retried, figures.dead_letters, len(sink.results)) == (1, 1, 1)


async def test_a_function_that_fails_before_its_first_event(mode):
    @stream_fn(mode=mode)
    async def fails(events):
        raise RuntimeError("at once")
        yield

    source, dead = MemorySource({"a": [1, 2, 3]}), MemorySink()
    await fails.keyed(source, key=lambda _: 0).into(MemorySink(), dead_letter=dead)
    assert [letter.value["value"] for _, letter in dead.results] == [1, 2, 3]
    assert source.committed == {"a": 2}


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


async def test_a_slow_key_pauses_its_partition_and_no_other(mode, tmp_path):
    gate = tmp_path / "gate"
    source = MemorySource({"s": ["slow"] + ["x"] * 500, "f": ["y"] * 500}, batch=20)
    sink = MemorySink()
    run = waiting(mode, gate, "slow").keyed(source, key=lambda event: event, max_pending=50)
    task = asyncio.create_task(run.into(sink, commit_every=0.01))
    while sum(value == "y" for _, value in sink.results) < 500:
        await asyncio.sleep(0.001)
    assert "s" in source._paused
    passed = sum(value == "x" for _, value in sink.results)
    assert passed < 50
    gate.touch()
    await task
    assert source.committed == {"s": 500, "f": 499}
    assert len(sink.results) == 1001


async def test_a_source_that_cannot_pause_is_held_up_and_goes_on():
    release = asyncio.Event()

    @stream_fn
    async def waits(events):
        async for event in events:
            if event == 0:
                await release.wait()
            yield event

    source = Scripted(*(records("p", [n], first=n) for n in range(100)))
    sink = MemorySink()
    run = waits.keyed(source, key=lambda event: event, max_pending=10)
    task = asyncio.create_task(run.into(sink))
    while run.figures.read < 11:
        await asyncio.sleep(0.001)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert run.figures.read == 11
    release.set()
    await task
    assert source.committed == {"p": 99}


async def test_a_revoked_partition_is_finished_and_committed_first(mode):
    source = Scripted(
        Assigned(["p", "q"]),
        records("p", [{"k": 1}] * 30),
        records("q", [{"k": 2}] * 10),
        Revoked(["p"]),
        records("q", [{"k": 2}] * 10, first=10),
    )
    sink = MemorySink()
    run = counts.options(mode=mode).keyed(source, key="k")
    await run.into(sink, commit_every=60)
    kinds = [(kind, what) for kind, what in source.calls if kind == "commit" or "q" in str(what)]
    revoked = next(n for n, (_, what) in enumerate(kinds) if isinstance(what, list) and n > 1)
    commits_before = [what for kind, what in kinds[:revoked] if kind == "commit"]
    assert any(what.get("p") == 29 for what in commits_before)
    assert source.committed == {"p": 29, "q": 19}


async def test_keys_of_a_revoked_partition_begin_anew_when_it_comes_back(mode):
    source = Scripted(
        records("p", [{"k": 1}] * 3), Revoked(["p"]), records("p", [{"k": 1}] * 2, first=3)
    )
    sink = MemorySink()
    await counts.options(mode=mode).keyed(source, key="k").into(sink)
    assert [number for _, (_, number, _) in sink.results] == [1, 2, 3, 1, 2]


async def test_a_lost_partition_is_never_committed(mode, tmp_path):
    gate = tmp_path / "gate"

    async def let_go():
        gate.touch()

    source = Scripted(records("p", [0, 0, 0]), Lost(["p"]), let_go, records("q", [1]))
    run = waiting(mode, gate, 0).keyed(source, key=lambda event: event)
    await run.into(MemorySink(), commit_every=0.01)
    assert source.committed == {"q": 0}


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


async def test_a_result_that_the_sink_refuses_holds_up_no_other():
    class Choosy(MemorySink):
        async def write(self, results):
            if any(result == "bad" for _, result in results):
                raise TypeError("no bad ones")
            await super().write(results)

    @stream_fn
    async def same(events):
        async for event in events:
            yield event

    source = MemorySource({"a": ["x", "bad", "y"]})
    sink, dead = Choosy(), MemorySink()
    await same.keyed(source, key=lambda event: event).into(sink, dead_letter=dead)
    assert [value for _, value in sink.results] == ["x", "y"]
    ((_, letter),) = dead.results
    assert letter.value["result"] == "bad"
    assert "value" not in letter.value  # it is no event
    assert "no bad ones" in letter.value["error"]


async def test_evicted_and_idle_keys_keep_positions_right(mode):
    source = MemorySource({"a": [{"k": n % 20} for n in range(400)]})
    fn = counts.options(mode=mode, max_concurrent=4, buffer=2)
    sink = MemorySink()
    await fn.keyed(source, key="k").into(sink)
    assert len(sink.results) == 400
    assert source.committed == {"a": 399}


async def test_an_event_that_is_too_large_is_a_dead_letter():
    values = [{"k": 1}, {"k": 1, "pad": "x" * 100_000}, {"k": 1}]
    source, sink, dead = MemorySource({"a": values}), MemorySink(), MemorySink()
    fn = counts.options(mode="process", max_bytes=10_000, workers=1)
    await fn.keyed(source, key="k").into(sink, dead_letter=dead)
    assert [number for _, (_, number, _) in sink.results] == [1, 2]
    assert "EventTooLarge" in dead.results[0][1].value["error"]
    assert source.committed == {"a": 2}


async def test_a_run_is_made_once():
    source = MemorySource({"a": [{"k": 1}]})
    run = counts.keyed(source, key="k")
    await run.into(MemorySink())
    with pytest.raises(Exception, match="run already"):
        await run.into(MemorySink())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("retries", -1),
        ("retries", "3"),
        ("commit_every", 0),
        ("commit_every", "1"),
        ("drain", -1),
        ("drain", float("nan")),
        ("on_error", "ignore"),
        ("on_bad", "ignore"),
    ],
)
async def test_settings_are_checked(setting, value):
    with pytest.raises(ValueError, match=setting):
        await counts.keyed(MemorySource({}), key="k").into(MemorySink(), **{setting: value})


def test_a_callable_that_would_not_be_awaited_is_refused():
    async def told(key, error):
        pass

    with pytest.raises(ValueError, match="must be a plain function"):
        counts.keyed([], key="k", on_error=told)


def test_finished_keys_is_checked():
    with pytest.raises(ValueError, match="finished_keys"):
        counts.keyed(MemorySource({}), key="k", finished_keys="forget")


@pytest.mark.parametrize("sink", [None, "alerts.ndjson", MemorySink])
async def test_what_is_no_sink_is_named(sink):
    source = MemorySource({"a": [{"k": 1}]})
    with pytest.raises(TypeError, match="the sink has the methods `write` and `flush`"):
        await counts.keyed(source, key="k").into(sink)
    if sink is not None:
        with pytest.raises(TypeError, match="`dead_letter` has the methods"):
            await counts.keyed(source, key="k").into(MemorySink(), dead_letter=sink)
    assert source.committed == {}


async def test_a_sink_whose_methods_are_not_async_is_named():
    class Plain:
        written = 0

        def write(self, results):
            self.written += len(results)

        def flush(self):
            pass

    sink = Plain()
    with pytest.raises(RuntimeError, match="`write` of the sink must be an `async` method"):
        await counts.keyed(MemorySource({"a": [{"k": 1}]}), key="k").into(
            sink, dead_letter=MemorySink()
        )
    assert sink.written == 1


def test_what_is_no_source_is_named():
    with pytest.raises(TypeError, match="the class `MemorySource` itself is none"):
        counts.keyed(MemorySource, key="k")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Record({"k": 1}), "has given Record"),
        ([3], "a list with 3"),
        (Bad(Record(b"1"), ValueError("no")), "has given Bad"),
        ([Record({"k": 1}, partition=["a"], position=0)], "a value that can be hashed"),
    ],
)
async def test_what_are_no_records_is_named(mode, item, message):
    source = Scripted(item)
    with pytest.raises(TypeError, match=message):
        await counts.options(mode=mode).keyed(source, key="k").into(MemorySink())
    assert source.calls[-1] == ("close", None)


async def test_a_source_that_fails_to_resume_ends_the_run(mode):
    class Fails(MemorySource):
        def resume(self, partitions):
            raise RuntimeError("not resumed")

    source = Fails({"a": [{"k": 1} for _ in range(100)]}, batch=50)
    with pytest.raises(RuntimeError, match="not resumed"):
        await counts.options(mode=mode).keyed(source, key="k", max_pending=5).into(MemorySink())


async def test_a_dead_letter_has_a_form_in_json_whatever_failed(tmp_path, mode):
    class Odd:
        def __repr__(self):
            raise LookupError("nothing to show")

    loop = {}
    loop["itself"] = loop
    values = [{"set": {1}, b"bytes": [b"raw"], 3: (1, b"\xff")}, "\ud800", Odd(), loop, 1 << 80]
    bad = [Bad(Record(v, None, "t", "a", n), ValueError("\udc80")) for n, v in enumerate(values)]
    place = tmp_path / "bad.ndjson"
    source = Scripted(bad)
    run = counts.options(mode=mode).over(source)
    figures = await run.into(MemorySink(), dead_letter=connect.file(place))
    assert figures.dead_letters == len(values) == len(place.read_bytes().splitlines())
    assert source.committed == {"a": len(values) - 1}
    first = json.loads(place.read_bytes().splitlines()[0])
    assert first["value"] == {"set": "{1}", "b'bytes'": ["raw"], "3": [1, {"base64": "/w=="}]}
    assert first["error"] == "ValueError: \\udc80"


async def test_a_dead_letter_sink_is_closed_though_the_sink_fails_to_close():
    class Fails(MemorySink):
        async def close(self):
            raise OSError("not closed")

    class Closed(MemorySink):
        closed = False

        async def close(self):
            self.closed = True

    letters = Closed()
    with pytest.raises(OSError, match="not closed"):
        await counts.over(MemorySource({})).into(Fails(), dead_letter=letters)
    assert letters.closed


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


@pytest.mark.parametrize("headers", [{"trace": 1}, {b"trace": "1"}, [("trace",)], "trace"])
def test_what_is_no_header_is_named(headers):
    with pytest.raises(TypeError, match="a header is a name and text or bytes"):
        connect.to(1, headers=headers)


def test_headers_are_text_or_bytes_and_may_come_twice():
    result = connect.to(1, headers=[("trace", "é"), ("trace", b"\xff")])
    assert result.headers == (("trace", "é".encode()), ("trace", b"\xff"))
    assert connect.to(1, headers={}).headers == ()


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


@stream_fn(mode="process", workers=1)
async def deadly(events):
    async for event in events:
        if event == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        yield event


@pytest.mark.parametrize("how", ["dead_letter", "drop"])
async def test_the_record_that_ends_its_worker_is_the_one_that_fails(how):
    events = [1, 2, "deadly", 4, 5]
    source, sink, letters = MemorySource({"a": events}), MemorySink(), MemorySink()
    terms = {"dead_letter": letters} if how == "dead_letter" else {"on_error": "drop"}
    figures = await deadly.over(source).into(sink, **terms)
    assert {result for _, result in sink.results} == {1, 2, 4, 5}
    assert source.committed == {"a": 4}
    assert figures.dead_letters + figures.dropped == 1
    if how == "dead_letter":
        assert [letter.value["position"] for _, letter in letters.results] == [2]


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
