"""Objects as sources and sinks: on a folder, and in S3's protocol on a server of moto."""

import asyncio
import uuid

import pytest
from conformance import Peer, SinkConformance, SourceConformance, close, take

from servers.server import free_port
from velo import connect, stream_fn
from velo.connect import Bad
from velo.connect.errors import ConnectError, NoSuchTopic, PositionLost, Unreachable
from velo.connect.urls import endpoint_of

obstore = pytest.importorskip("obstore")
from obstore.store import LocalStore, MemoryStore, S3Store  # noqa: E402

# Its threads and their descriptors last from the first call on, so that they are no leak of a test.
obstore.list(MemoryStore()).collect()


class Folder:
    """A folder as a store."""

    def __init__(self, path):
        self.store = LocalStore(path, mkdir=True)
        self.url = f"file://{path}"
        self.options = {}


class Bucket:
    """A bucket of a server that speaks S3's protocol."""

    def __init__(self, port):
        self.url = f"s3://{uuid.uuid4().hex}"
        self.options = {
            "endpoint": f"http://127.0.0.1:{port}",
            "region": "us-east-1",
            "access_key_id": "me",
            "secret_access_key": "hunter2",
        }
        self.store = S3Store.from_url(
            self.url, config=self.options, client_options={"allow_http": True}
        )


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path):
    if request.param == "folder":
        return Folder(tmp_path / "objects")
    place = Bucket(request.getfixturevalue("moto").port)
    import urllib.request

    url = f"{place.options['endpoint']}/{place.url.removeprefix('s3://')}"
    login = {"Authorization": "AWS4-HMAC-SHA256 Credential=me/20260101/us-east-1/s3/aws4_request"}
    urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=login)).close()
    return place


class ObjectsPeer(Peer):
    seeks = True
    commits = False
    carries = frozenset()

    def __init__(self, place):
        self.place = place
        self.store = place.store
        self.produced = 0

    async def put(self, name, data):
        await obstore.put_async(self.store, name, data)

    async def produce(self, values, key=None, headers=()):
        """In objects of 100 lines."""
        for begin in range(0, len(values), 100):
            lines = b"".join(value + b"\n" for value in values[begin : begin + 100])
            await self.put(f"in/{self.produced:04}.ndjson", lines)
            self.produced += 1

    async def objects(self):
        some = [each async for part in obstore.list(self.store, prefix="out") for each in part]
        names = sorted(each["path"] for each in some)
        return [bytes(await (await obstore.get_async(self.store, n)).bytes_async()) for n in names]

    async def written(self, count):
        return b"".join(await self.objects()).splitlines()

    def source(self, **settings):
        return connect.objects(f"{self.place.url}/in", options=self.place.options, **settings)

    def sink(self, **settings):
        return connect.objects(f"{self.place.url}/out", options=self.place.options, **settings)

    def source_of_nothing(self):
        options = Bucket(free_port()).options
        return connect.objects("s3://bucket/in", options=options, retries=0)


@pytest.fixture
def peer(place):
    return ObjectsPeer(place)


async def read(source):
    items = [item async for batch in source for item in batch]
    await source.close()
    return items


def values(items):
    return [item.value for item in items]


class TestObjects(SourceConformance, SinkConformance):
    pass


@stream_fn
async def doubled(numbers):
    async for number in numbers:
        yield 2 * number


async def test_objects_of_one_prefix_go_to_another(peer):
    await peer.produce([b"%d" % number for number in range(1234)])
    figures = await doubled.over(peer.source()).into(peer.sink())
    assert figures.read == 1234
    assert await peer.written(1234) == [b"%d" % (2 * number) for number in range(1234)]


async def test_objects_behind_a_mark_are_taken_back(peer):
    sink = peer.sink()
    marks, seen = [await sink.mark()], [[]]
    for number in range(3):
        await sink.write([("k", number)])
        await sink.flush()
        marks.append(await sink.mark())
        seen.append(await peer.objects())
    await sink.close()
    another = peer.sink()
    await another.rewind(None)
    await another.write([("k", "of another run")])
    await another.flush()
    await another.close()
    for mark, objects in zip(reversed(marks), reversed(seen), strict=True):
        sink = peer.sink()
        await sink.rewind(mark)
        assert sorted(await peer.objects()) == sorted([*objects, b'"of another run"\n'])
        assert await sink.mark() == mark
        await sink.close()
    sink = peer.sink()
    await sink.rewind(marks[1])
    await sink.write([("k", 7)])
    await sink.flush()
    assert await sink.mark() == marks[2]
    await sink.close()


async def test_objects_are_read_in_the_order_of_their_names(peer):
    for name in ("in/b", "in/a/z", "in/a.ndjson", "in/c", "inside", "other"):
        await peer.put(name, f'"{name}"\n'.encode())
    await peer.put("in/empty", b"")
    items = await read(peer.source(decode="json"))
    assert values(items) == ["in/a.ndjson", "in/a/z", "in/b", "in/c"]
    assert values(await read(peer.source(suffix=".ndjson"))) == ["in/a.ndjson"]


async def test_each_object_has_its_own_csv_header(peer):
    await peer.put("in/a", b"\na,b\n1,x\n2,y\n")
    await peer.put("in/b", b"b,a\nz,3")
    first, *rest = items = await read(peer.source(decode="csv"))
    assert values(items) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"b": "z", "a": 3}]
    behind = await read(peer.source(decode="csv", start=first.position))
    assert values(behind) == values(rest)


async def test_a_position_says_where_to_go_on(peer):
    await peer.put("in/a", b"1\n2\r\n\n3\n4")
    await peer.put("in/b", b"5\n6\n")
    items = await read(peer.source())
    assert values(items) == [1, 2, 3, 4, 5, 6]
    for number, item in enumerate(items):
        rest = await read(peer.source(start=tuple(item.position)))
        assert values(rest) == values(items)[number + 1 :]
        assert [each.position for each in rest] == [each.position for each in items[number + 1 :]]


async def test_a_position_that_is_gone_is_an_error(peer):
    await peer.put("in/a", b"1\n")
    with pytest.raises(PositionLost, match=r"byte 9 of `.*in/a`, which has 2 bytes"):
        await read(peer.source(start=(await name_of(peer, "in/a"), 9)))
    with pytest.raises(PositionLost, match="`gone`, which does not exist"):
        await read(peer.source(start=("gone", 0)))


async def name_of(peer, name):
    (item, *_) = await read(peer.source())
    assert item.topic.endswith(name)
    return item.topic


async def test_lines_of_a_large_object(peer):
    lines = b"".join(b"%d\n" % number for number in range(200_000))
    await peer.put("in/a", lines)
    items = await read(peer.source())
    assert values(items) == list(range(200_000))
    assert items[-1].position[1] == len(lines)


async def test_a_line_that_is_too_long_is_no_event(peer):
    await peer.put("in/a", b"1\n" + b"2" * 100 + b"\n3\n")
    one, bad, three = await read(peer.source(max_line=50))
    assert (one.value, three.value) == (1, 3)
    assert isinstance(bad, Bad)
    assert bad.record.position[1] == 103


async def test_one_object_is_read(peer):
    await peer.put("in", b"1\n2\n")
    assert values(await read(peer.source())) == [1, 2]


async def test_nothing_there_is_an_error(peer):
    with pytest.raises(NoSuchTopic, match="no object at .*/in"):
        await read(peer.source())


async def test_packed_objects_are_refused(peer):
    await peer.put("in/a.gz", b"1\n")
    with pytest.raises(ConnectError, match=r"a\.gz` of .* is packed"):
        await read(peer.source())


async def test_each_flush_is_an_object(peer):
    sink = peer.sink()
    await sink.write([(None, 1), (None, 2)])
    await sink.write([(None, 3)])
    await sink.flush()
    await sink.flush()
    await sink.write([(None, 4)])
    await sink.flush()
    await sink.close()
    assert await peer.objects() == [b"1\n2\n3\n", b"4\n"]


async def test_an_object_has_a_bound(peer):
    sink = peer.sink(object_bytes=10)
    for number in range(10):
        await sink.write([(None, number)])
    assert await peer.objects() == [b"0\n1\n2\n3\n4\n", b"5\n6\n7\n8\n9\n"]
    await sink.close()


async def test_stop_ends_a_source(peer):
    await peer.produce([b"%d" % number for number in range(1000)])
    source = peer.source()
    items, iteration = await take(source, 1)
    source.stop()
    async for batch in iteration:
        items += batch
    assert values(items) == list(range(100))
    await close(source, iteration)


async def test_what_fails_is_kept_for_the_next_flush(tmp_path):
    (tmp_path / "out").write_text("a file, and no folder")
    sink = connect.objects(f"file://{tmp_path}/out")
    await sink.write([(None, 1)])
    with pytest.raises(ConnectError, match="cannot write"):
        await sink.flush()
    (tmp_path / "out").unlink()
    await sink.flush()
    (path,) = (tmp_path / "out").iterdir()
    assert path.read_text() == "1\n"


async def test_a_bucket_that_is_not_there(moto):
    options = Bucket(moto.port).options
    with pytest.raises(NoSuchTopic, match="s3://no-such-bucket/x") as caught:
        await read(connect.objects("s3://no-such-bucket/x", options=options))
    assert "\n" not in str(caught.value)


async def test_secrets_are_not_shown():
    options = {"secret_access_key": "hunter2", "access_key_id": "me", "region": "x"}
    options["endpoint"] = f"http://127.0.0.1:{free_port()}"
    source = connect.objects("s3://bucket/x", options=options, retries=0)
    with pytest.raises(Unreachable) as caught:
        await read(source)
    assert "hunter2" not in f"{source!r} {source.name} {caught.value}"
    with pytest.raises(ValueError, match="no login") as caught:
        connect.objects("s3://me:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)


async def test_urls(tmp_path):
    store = LocalStore(tmp_path)
    await obstore.put_async(store, "in/a.txt", b"1\n2\n")
    name = f"{tmp_path}/in/a.txt".strip("/")
    source = connect.objects(f"file://{tmp_path}/in", start=(name, 2), decode="text")
    assert values(await read(source)) == ["2"]
    url = "s3://bucket/x?region=eu-central-1&suffix=.txt&start=x/a.txt:7"
    assert repr(endpoint_of(url)) == "objects('s3://bucket/x')"
    with pytest.raises(ValueError, match="OBJECT:BYTE"):
        endpoint_of("s3://bucket/x?start=7")
    with pytest.raises(ValueError, match="no setting `regoin`"):
        endpoint_of("s3://bucket/x?regoin=x")
    for url in ("http://host/x", "s3:///x", "file://host/x"):
        with pytest.raises(ValueError, match="s3://BUCKET"):
            connect.objects(url)


async def test_a_source_closes_in_the_middle(peer):
    await peer.produce([b"%d" % number for number in range(1000)])
    before = asyncio.all_tasks()
    source = peer.source()
    _, iteration = await take(source, 1)
    await close(source, iteration)
    assert asyncio.all_tasks() <= before
