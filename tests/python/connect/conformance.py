"""What every connector promises, as tests over a `Peer`: one system, seen from beside velo.

A connector's own test module makes a `Peer` of its server, and inherits these tests:

    class TestKafka(SourceConformance, SinkConformance):
        @pytest.fixture
        def peer(self, kafka): return KafkaPeer(kafka)

The peer talks to the server by the client library itself, never by velo.
"""

import asyncio

import pytest

from helpers import HANG
from velo.connect.errors import ConnectError, Unreachable
from velo.connect.model import Bad, Record


class Peer:
    """One system with a fresh topic (stream, queue, table) for a test.

    `ordered` says that one partition keeps the order of `produce`; `commits`, that a new source
    goes on behind what was committed; `seeks`, that a source goes back to a position; `stable`,
    that what comes again has its old position; `carries`, which of `key`, `headers` and `timestamp`
    survive.
    """

    ordered = True
    commits = True
    seeks = False
    stable = False
    carries = frozenset({"key", "headers", "timestamp"})

    async def produce(self, values, key=None, headers=()):
        """Put raw bytes into the topic, in order."""
        raise NotImplementedError

    async def written(self, count):
        """Wait for so many raw values that a sink has written, and return them in order."""
        raise NotImplementedError

    def source(self, **settings):
        """A source of the topic, from its beginning or from what was committed."""
        raise NotImplementedError

    def sink(self, **settings):
        """A sink to the topic that `written` reads."""
        raise NotImplementedError

    def source_of_nothing(self):
        """A source at an address where no server is."""
        raise NotImplementedError


async def take(source, count, seconds=30):
    """Read so many records and bad ones; the iteration that is left open, to be closed."""
    items, iteration = [], aiter(source)
    async with asyncio.timeout(seconds):
        while len(items) < count:
            batch = await anext(iteration)
            if isinstance(batch, list | tuple):
                items.extend(batch)
    return items, iteration


async def close(source, iteration):
    await iteration.aclose()
    if hasattr(source, "close"):
        await source.close()


def record_of(item):
    return item.record if isinstance(item, Bad) else item


def last_positions(items):
    return {record_of(item).partition: record_of(item).position for item in items}


def places(item):
    return item.partition, item.position, item.value


class SourceConformance:
    async def test_every_value_arrives_once_and_in_order(self, peer):
        await peer.produce([b"%d" % number for number in range(500)], key="k")
        source = peer.source()
        items, iteration = await take(source, 500)
        values = [item.value for item in items]
        assert (values if peer.ordered else sorted(values)) == list(range(500))
        assert all(type(item) is Record for item in items)
        await close(source, iteration)

    async def test_positions_grow_within_a_partition_and_name_it(self, peer):
        await peer.produce([b"1", b"2", b"3"], key="k")
        source = peer.source()
        items, iteration = await take(source, 3)
        places = [(item.partition, item.position) for item in items]
        assert len(set(places)) == 3
        await close(source, iteration)

    async def test_a_new_source_goes_on_behind_what_was_committed(self, peer):
        if not peer.commits:
            pytest.skip("it keeps no positions")
        await peer.produce([b"%d" % number for number in range(10)], key="k")
        source = peer.source()
        items, iteration = await take(source, 10)
        await source.commit(last_positions(items[:6]))
        await close(source, iteration)
        source = peer.source()
        again, iteration = await take(source, 4)
        assert [item.value for item in again] == [item.value for item in items[6:]]
        await close(source, iteration)

    async def test_what_was_not_committed_comes_again(self, peer):
        if not peer.commits:
            pytest.skip("it keeps no positions")
        await peer.produce([b"1", b"2"], key="k")
        for _ in range(2):
            source = peer.source()
            items, iteration = await take(source, 2)
            assert sorted(item.value for item in items) == [1, 2]
            await close(source, iteration)

    async def test_a_source_seeks_and_the_rest_is_exactly_the_rest(self, peer):
        assert hasattr(peer.source(), "seek") == peer.seeks
        if not peer.seeks:
            pytest.skip("it cannot go back to a position")
        await peer.produce([b"%d" % number for number in range(40)], key="k")
        source = peer.source()
        source.seek({})
        items, iteration = await take(source, 40)
        assert [item.value for item in items] == list(range(40))
        await source.commit(last_positions(items[:30]))
        await close(source, iteration)
        for count in (1, 20, 39):
            source = peer.source()
            positions = last_positions(items[:count]) | {"of another source": ("x", 1)}
            source.seek(positions)
            rest, iteration = await take(source, 40 - count)
            assert [places(item) for item in rest] == [places(item) for item in items[count:]]
            await close(source, iteration)

    async def test_a_stable_position_is_kept_by_what_comes_again(self, peer):
        assert getattr(peer.source(), "stable", False) == peer.stable
        if not peer.stable:
            pytest.skip("its positions are of one run")
        await peer.produce([b"%d" % number for number in range(10)], key="k")
        runs = []
        for _ in range(2):
            source = peer.source()
            items, iteration = await take(source, 10)
            runs.append(sorted((places(item) for item in items), key=lambda place: place[2]))
            await close(source, iteration)
        assert runs[0] == runs[1]

    async def test_what_cannot_be_decoded_keeps_its_bytes_and_its_place(self, peer):
        await peer.produce([b"1", b"{broken", b"3"], key="k")
        source = peer.source()
        items, iteration = await take(source, 3)
        (bad,) = [item for item in items if isinstance(item, Bad)]
        assert bad.record.value == b"{broken"
        assert isinstance(bad.error, Exception)
        assert [item.value for item in items if type(item) is Record] == [1, 3]
        await close(source, iteration)

    async def test_a_decoder_whose_server_is_away_ends_the_source(self, peer):
        def away(_):
            raise Unreachable("no answer of the schema registry")

        await peer.produce([b"1"], key="k")
        source = peer.source(decode=away)
        with pytest.raises(ConnectError, match="schema registry"):
            await take(source, 1)
        await source.close()

    async def test_a_format_or_a_function_decodes(self, peer):
        await peer.produce([b"abc"], key="k")
        for decode, value in (("bytes", b"abc"), ("text", "abc"), (len, 3)):
            source = peer.source(decode=decode)
            items, iteration = await take(source, 1)
            assert items[0].value == value
            await close(source, iteration)

    async def test_key_headers_and_timestamp_come_along(self, peer):
        await peer.produce([b"1"], key="k1", headers=(("h", b"v"),))
        source = peer.source()
        (item,), iteration = await take(source, 1)
        if "key" in peer.carries:
            assert item.key in ("k1", b"k1")
        if "headers" in peer.carries:
            assert ("h", b"v") in item.headers
        if "timestamp" in peer.carries:
            assert item.timestamp > 1_700_000_000
        await close(source, iteration)

    async def test_a_server_that_is_not_there_is_named(self, peer):
        source = peer.source_of_nothing()
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1"):
            await take(source, 1)

    async def test_nothing_is_left_behind(self, peer):
        await peer.produce([b"1"], key="k")
        before = asyncio.all_tasks()
        source = peer.source()
        _, iteration = await take(source, 1)
        await close(source, iteration)
        assert asyncio.all_tasks() <= before


class SinkConformance:
    async def test_what_was_flushed_is_there_in_order(self, peer):
        sink = peer.sink()
        await sink.write([("k", {"number": number}) for number in range(300)])
        await sink.flush()
        written = await peer.written(300)
        assert written == [b'{"number":%d}' % number for number in range(300)]
        await sink.close()

    async def test_results_are_flushed_while_others_are_written(self, peer):
        sink = peer.sink()
        writing = True

        async def write():
            nonlocal writing
            for number in range(300):
                await sink.write([("k", {"number": number})])
                await asyncio.sleep(0)
            writing = False

        async def flush():
            while writing:
                await sink.flush()
                await asyncio.sleep(0)

        async with asyncio.timeout(HANG):
            await asyncio.gather(write(), flush(), flush())
        await sink.flush()
        written = await peer.written(300)
        assert written == [b'{"number":%d}' % number for number in range(300)]
        await sink.close()

    async def test_a_result_that_cannot_be_encoded_is_an_error(self, peer):
        sink = peer.sink()
        with pytest.raises(TypeError):
            await sink.write([("k", object())])
        await sink.close()

    async def test_of_results_that_are_refused_none_is_written(self, peer):
        sink = peer.sink()
        values = [{"number": 1}, {"number": 2}, object(), {"number": 4}]
        with pytest.raises(TypeError):
            await sink.write([("k", value) for value in values])
        await sink.write([("k", {"number": 5})])
        await sink.flush()
        assert await peer.written(1) == [b'{"number":5}']
        await sink.close()

    async def test_no_secret_is_shown(self, peer):
        for endpoint in (peer.source(), peer.sink()):
            assert "hunter2" not in f"{endpoint!r} {getattr(endpoint, 'name', '')}"


__all__ = ["ConnectError", "Peer", "SinkConformance", "SourceConformance", "close", "take"]
