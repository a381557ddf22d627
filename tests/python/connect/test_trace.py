"""Trace context: the headers `traceparent` and `tracestate` go from a record to its results."""

import pytest

from velo import connect, stream_fn
from velo.connect.memory import MemorySink, MemorySource
from velo.connect.model import Record, To

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def trace_of(number):
    return (("traceparent", PARENT.encode()), ("tracestate", b"n=%d" % number))


class Traced(MemorySource):
    """Every third record has a trace, among other headers."""

    async def __aiter__(self):
        async for batch in super().__aiter__():
            yield [
                Record(
                    record.value,
                    partition=record.partition,
                    position=record.position,
                    headers=(("other", b"x"), *trace_of(record.value)) if self.has(record) else (),
                )
                for record in batch
            ]

    @staticmethod
    def has(record):
        return record.value % 3 == 0


def seventh(number):
    return number % 7


@stream_fn
async def twice(numbers):
    async for number in numbers:
        yield number
        yield connect.to(number, topic="t", headers={"own": str(number)})
        if number % 5 == 0:
            yield connect.to(number, headers={"Traceparent": "mine"})


def expected(number):
    trace = trace_of(number) if number % 3 == 0 else ()
    found = [(number, None, trace), (number, "t", (("own", b"%d" % number), *trace))]
    if number % 5 == 0:
        found.append((number, None, (("Traceparent", b"mine"),)))
    return found


def taken_apart(result):
    if type(result) is To:
        return result.value, result.topic, result.headers
    return result, None, ()


async def test_a_result_has_the_trace_of_its_record(mode):
    sink = MemorySink()
    source = Traced({"a": range(60), "b": range(60, 120)}, batch=7)
    fn = twice.options(mode=mode)
    await fn.keyed(source, key=seventh).into(sink)
    for key in range(7):
        found = [taken_apart(result) for k, result in sink.results if k == key]
        numbers = [number for number in range(120) if number % 7 == key]
        by_partition = [n for n in numbers if n < 60], [n for n in numbers if n >= 60]
        assert sorted(found, key=lambda each: each[0]) == [
            each for some in by_partition for number in some for each in expected(number)
        ]
    untraced = [r for _, r in sink.results if type(r) is not To]
    assert len(untraced) == 80


async def test_over_one_stream_too(mode):
    sink = MemorySink()
    await twice.options(mode=mode).over(Traced({"a": range(9)})).into(sink)
    found = [taken_apart(result) for _, result in sink.results]
    assert found == [each for number in range(9) for each in expected(number)]


async def test_who_iterates_gets_results_as_they_were_made(mode):
    source = Traced({"a": range(6)})
    results = [result async for result in twice.options(mode=mode).over(source)]
    plain = [result for result in results if type(result) is not To]
    assert plain == list(range(6))
    assert all(name != "traceparent" for r in results if type(r) is To for name, _ in r.headers)


@stream_fn
async def behind(numbers):
    total = 0
    async for number in numbers:
        total += number
    yield total


@stream_fn
async def first(numbers):
    yield "begin"
    async for number in numbers:
        yield number
        return


async def test_a_result_behind_the_end_has_the_trace_of_the_last_record(mode):
    for numbers, trace in (([1, 3], trace_of(3)), ([3, 1], ())):
        sink = MemorySink()
        await behind.options(mode=mode).over(Traced({"a": numbers})).into(sink)
        assert taken_apart(sink.results[0][1]) == (sum(numbers), None, trace)


@pytest.mark.parametrize("finished", ["ignore", "restart"])
async def test_a_key_that_begins_anew_has_no_trace_of_before(mode, finished):
    sink = MemorySink()
    source = Traced({"a": [3, 1]})
    await first.options(mode=mode).keyed(source, key=bool, finished_keys=finished).into(sink)
    headers = [taken_apart(result)[2] for _, result in sink.results]
    assert headers == [(), trace_of(3), (), ()][: 2 if finished == "ignore" else 4]
