"""`into`: what becomes of records, results and keys that fail."""

import asyncio
import json
import os
import signal

import pytest

from scripted import Scripted, counts, records
from velo import connect, stream_fn
from velo.connect import Bad, Record
from velo.connect.memory import MemorySink, MemorySource


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


async def test_a_run_that_ends_before_a_retry(mode, monkeypatch):
    """The record is not tried once more afterwards."""

    class Full(MemorySink):
        async def write(self, results):
            raise OSError("full")

    monkeypatch.setattr("velo._api.driver._FIRST_DELAY", 0.01)
    loop, told = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    source = MemorySource({"a": [{"k": 1, "fails": True}, {"k": 2}]})
    # One worker: it comes to the second record before the first one's last retry.
    fn = counts.options(mode=mode, workers=1 if mode == "process" else None)
    with pytest.raises(OSError, match="full"):
        await fn.keyed(source, key="k").into(Full(), retries=3)
    late = loop.create_future()
    loop.call_later(0.05, late.set_result, None)  # behind the timer of the retry
    await late
    assert told == []


async def test_any_number_of_records_without_a_value_in_a_row():
    bad = [Bad(Record(b"", partition="a", position=n), ValueError("no")) for n in range(50_000)]
    run = counts.keyed(Scripted(bad), key="k", max_pending=100_000)
    figures = await run.into(MemorySink(), on_bad="drop")
    assert figures.bad == 50_000


async def test_a_function_that_fails_before_its_first_event(mode):
    @stream_fn(mode=mode)
    async def fails(events):
        raise RuntimeError("at once")
        yield

    source, dead = MemorySource({"a": [1, 2, 3]}), MemorySink()
    await fails.keyed(source, key=lambda _: 0).into(MemorySink(), dead_letter=dead)
    assert [letter.value["value"] for _, letter in dead.results] == [1, 2, 3]
    assert source.committed == {"a": 2}


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


async def test_an_event_that_is_too_large_is_a_dead_letter():
    values = [{"k": 1}, {"k": 1, "pad": "x" * 100_000}, {"k": 1}]
    source, sink, dead = MemorySource({"a": values}), MemorySink(), MemorySink()
    fn = counts.options(mode="process", max_bytes=10_000, workers=1)
    await fn.keyed(source, key="k").into(sink, dead_letter=dead)
    assert [number for _, (_, number, _) in sink.results] == [1, 2]
    assert "EventTooLarge" in dead.results[0][1].value["error"]
    assert source.committed == {"a": 2}


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
