"""Code that type checkers accept, and the types that they infer."""

from collections.abc import AsyncIterator
from typing import Any, assert_type

from velo import Keys, Stream, StreamConfig, StreamFn, StreamMetrics, stream_fn
from velo.events import TICK, Events, Tick


@stream_fn
async def lengths(events: AsyncIterator[str]) -> AsyncIterator[int]:
    async for event in events:
        yield len(event)


@stream_fn(mode="process", workers=2, buffer=64, full="drop_oldest", preload=["json"])
async def halves(events: AsyncIterator[int]) -> AsyncIterator[float]:
    async for event in events:
        yield event / 2


@stream_fn(config=StreamConfig(mode="process"))
async def texts(events: Events[float]) -> AsyncIterator[str]:
    async for event in events.ticks(1.0):
        yield repr(TICK) if isinstance(event, Tick) else str(event)


@stream_fn
async def pauses(events: Events[str]) -> AsyncIterator[str]:
    async for event in events.ticks(1.0):
        if isinstance(event, Tick):
            assert_type(event, Tick)
        else:
            assert_type(event, str)
            yield event


@stream_fn(mode="process", recover="replay", journal_limit=1 << 20, on_poison="skip")
async def counted(events: AsyncIterator[str], state: dict[str, int]) -> AsyncIterator[int]:
    async for event in events:
        state["all"] = state.get("all", 0) + len(event)
        yield state["all"]


@stream_fn
async def counted_with_ticks(events: Events[str], state: dict[str, Any]) -> AsyncIterator[int]:
    async for event in events.ticks(1.0):
        if isinstance(event, str):
            yield len(event)


@stream_fn
async def untyped(events):  # type: ignore[no-untyped-def]
    async for event in events:
        yield event


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    async def __call__(self, events: AsyncIterator[int]) -> AsyncIterator[int]:
        async for event in events:
            yield event * self.factor


async def source() -> AsyncIterator[str]:
    yield "a"


async def uses() -> None:
    assert_type(lengths, StreamFn[str, int])
    assert_type(counted, StreamFn[str, int])
    assert_type(counted_with_ticks, StreamFn[str, int])
    async for count in counted(["a"], {"all": 1}):
        assert_type(count, int)
    StreamConfig(recover="replay", on_poison=lambda stream, event: print(stream, event))
    assert_type(texts, StreamFn[float, str])
    assert_type(halves.options(mode="inline"), StreamFn[int, float])
    assert_type(lengths | halves, StreamFn[str, float])
    assert_type(lengths | halves | texts, StreamFn[str, str])
    assert_type(stream_fn(Scale(2)), StreamFn[int, int])

    assert_type(await lengths.run(["a"]), list[int])
    assert_type(await lengths.run(source()), list[int])
    assert_type(lengths.run_sync(["a"]), list[int])
    async for length in lengths(["a"]):
        assert_type(length, int)

    async with lengths.open() as stream:
        assert_type(stream, Stream[str, int])
        await stream.send("a")
        await stream.send_batch(["a", "b"])
        assert_type(await stream.recv(), int)
        assert_type(await stream.recv(copy=True), int)
        assert_type(await stream.recv_batch(10), list[int])
        async for result in stream.feed(["a"]):
            assert_type(result, int)
        async for result in stream.feed(source()):
            assert_type(result, int)
        await stream.end()
        async for result in stream:
            assert_type(result, int)
        assert_type(stream.metrics, StreamMetrics)
        assert_type(stream.metrics.latency_p99, float | None)
        assert_type(stream.name, str)
    opened: Stream[str, int] = await lengths.open()
    await opened.aclose()

    async for key, result in lengths.keyed(["a"], key=len):
        assert_type(result, int)
        print(key)
    async for _, result in lengths.keyed(source(), key="field"):
        assert_type(result, int)

    async with lengths.keys(on_error="drop") as keys:
        assert_type(keys, Keys[str, int])
        await keys.send("key", "event")
        assert_type(await keys.request(("any", 1), "event"), list[int])
        await keys.end("key")
        await keys.end_all()
        async for key, result in keys:
            assert_type(result, int)
            print(key)
        assert_type(keys.metrics.unread, int)

    assert_type(lengths.metrics.opened, int)
    assert_type(lengths.config.to_dict(), dict[str, Any])
