"""`into`: settings, sources, sinks and records that are none."""

import pytest

from scripted import Scripted, counts
from velo import connect
from velo.connect import Bad, Record
from velo.connect.memory import MemorySink, MemorySource


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


@pytest.mark.parametrize("headers", [{"trace": 1}, {b"trace": "1"}, [("trace",)], "trace"])
def test_what_is_no_header_is_named(headers):
    with pytest.raises(TypeError, match="a header is a name and text or bytes"):
        connect.to(1, headers=headers)


def test_headers_are_text_or_bytes_and_may_come_twice():
    result = connect.to(1, headers=[("trace", "é"), ("trace", b"\xff")])
    assert result.headers == (("trace", "é".encode()), ("trace", b"\xff"))
    assert connect.to(1, headers={}).headers == ()
