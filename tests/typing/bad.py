"""What type checkers reject: every line marked `# E`, and no other."""

from collections.abc import AsyncIterator

from velo import Stream, StreamConfig, stream_fn
from velo.events import Events


@stream_fn
async def lengths(events: AsyncIterator[str]) -> AsyncIterator[int]:
    async for event in events:
        yield len(event)


@stream_fn
async def shouts(events: Events[str]) -> AsyncIterator[str]:
    async for event in events:
        yield event.upper()


async def numbers() -> AsyncIterator[int]:
    yield 1


@stream_fn  # E
async def returns(events: AsyncIterator[str]) -> int:
    return 1


@stream_fn  # E
def plain(events: list[str]) -> list[str]:
    return events


async def uses() -> None:
    await lengths.run([1])  # E
    await lengths.run(numbers())  # E
    lengths.run_sync([b"a"])  # E
    wrong: list[str] = await lengths.run(["a"])  # E
    lengths | lengths  # E
    lengths | len  # E
    async with lengths.open() as stream:
        await stream.send(1)  # E
        await stream.send_batch([1])  # E
        text: str = await stream.recv()  # E
        texts: list[str] = await stream.recv_batch()  # E
        stream.feed([1])  # E
        stream.feed(numbers())  # E
        async for result in stream:
            result.upper()  # E
        other: Stream[int, int] = stream  # E
        print(text, texts, other)
    async for _, result in lengths.keyed([1], key="a"):  # E
        print(result)
    async with lengths.keys() as keys:
        await keys.send("key", 1)  # E
        await keys.request([], "event")  # E
    StreamConfig(mode="thread")  # E
    StreamConfig(full="newest")  # E
    StreamConfig(buffer="many")  # E
    StreamConfig(recover=True)  # E
    StreamConfig(on_poison="ignore")  # E
    print(wrong, shouts)


def settings() -> None:
    lengths.options(mode="thread")  # E
    lengths.options(bufer=3)  # E
    StreamConfig().replace(workers="two")  # E
    stream_fn(mode="thread")  # E
