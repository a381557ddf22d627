"""Files as sources and sinks: lines, packed files, ones that grow, and what is wrong with them."""

import asyncio
import gzip
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velo import connect, stream_fn
from velo.connect import Bad
from velo.connect.errors import ConnectError, NoSuchTopic, PositionLost
from velo.connect.memory import MemorySink


@stream_fn
async def same(events):
    async for event in events:
        yield event


async def read(source):
    items = []
    async for batch in source:
        items.extend(batch)
    await source.close()
    return items


def values(items):
    return [item.value for item in items]


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
async def test_what_is_written_is_read(tmp_path, suffix):
    path = tmp_path / f"out.ndjson{suffix}"
    sink = connect.file(path)
    await sink.write([(None, {"n": n}) for n in range(1200)])
    await sink.flush()
    await sink.close()
    items = await read(connect.file(path))
    assert values(items) == [{"n": n} for n in range(1200)]


async def test_a_position_says_where_to_go_on(tmp_path):
    path = tmp_path / "in.ndjson"
    path.write_bytes(b"1\n2\r\n\n3\n4")
    items = await read(connect.file(path))
    assert values(items) == [1, 2, 3, 4]
    for number, item in enumerate(items):
        rest = await read(connect.file(path, start=item.position))
        assert values(rest) == values(items)[number + 1 :]


@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=30))
def test_any_lines_keep_their_places(lines):
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(line + b"\n" for line in lines))
        file.flush()
        items = asyncio.run(read(connect.file(file.name, decode="bytes")))
    assert values(items) == [stripped for line in lines if (stripped := line.rstrip(b"\r"))]
    positions = [item.position for item in items]
    assert positions == sorted(set(positions))


async def test_a_file_that_grows_is_followed(tmp_path):
    path = tmp_path / "grows.ndjson"
    path.write_text("1\n")
    source = connect.file(path, follow=True)
    items = []

    async def follow():
        async for batch in source:
            items.extend(batch)

    task = asyncio.create_task(follow())
    with open(path, "a") as file:
        for number in range(2, 5):
            file.write(f"{number}")  # a line without an end is not there yet
            file.flush()
            while len(items) < number - 1:
                await asyncio.sleep(0.001)
            file.write("\n")
            file.flush()
            while len(items) < number:
                await asyncio.sleep(0.001)
    source.stop()
    await task
    await source.close()
    assert values(items) == [1, 2, 3, 4]


async def test_a_file_that_was_cut_is_no_longer_the_one_that_was_read(tmp_path):
    path = tmp_path / "cut.ndjson"
    path.write_text("1\n2\n3\n")
    with pytest.raises(PositionLost, match=r"cut\.ndjson.*6 bytes.*100"):
        await read(connect.file(path, start=100))
    source = connect.file(path, follow=True)
    iteration = aiter(source)
    await anext(iteration)
    os.truncate(path, 0)
    with pytest.raises(PositionLost, match="was cut while it was read"):
        await anext(iteration)
    await source.close()


async def test_what_is_wrong_with_a_file_is_said(tmp_path):
    with pytest.raises(NoSuchTopic, match="there is no file"):
        await read(connect.file(tmp_path / "none.ndjson"))
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(b"1\n" * 10_000)[:-20])
    with pytest.raises(ConnectError, match=r"broken\.gz.*any further"):
        await read(connect.file(broken))
    sink = connect.file(tmp_path / "none" / "out")
    with pytest.raises(ConnectError, match="cannot write to .*no such file or directory"):
        await sink.write([(None, 1)])
    await sink.close()
    with pytest.raises(ValueError, match="cannot be followed"):
        connect.file(broken, follow=True)


async def test_lines_that_are_no_events_keep_their_place(tmp_path):
    path = tmp_path / "in.ndjson"
    path.write_bytes(b"1\n{\n" + b"9" * 100 + b"\n2\n")
    items = await read(connect.file(path, max_line=50))
    assert [type(item) is Bad for item in items] == [False, True, True, False]
    assert items[1].record.value == b"{"
    assert "more than 50 bytes" in str(items[2].error)
    assert items[3].position == path.stat().st_size


async def test_a_long_line_is_not_kept_in_memory(tmp_path):
    path = tmp_path / "in.ndjson"
    path.write_bytes(b"1\n" + b"x" * 5_000_000 + b"\n2\n")
    items = await read(connect.file(path, max_line=1000))
    assert [type(item) is Bad for item in items] == [False, True, False]
    assert items[2].value == 2


async def test_a_torn_line_of_a_killed_program_is_ended(tmp_path):
    path = tmp_path / "out.ndjson"
    path.write_bytes(b'{"n":1}\n{"n":')
    sink = connect.file(path, keys=True)
    await sink.write([("k", 2)])
    await sink.flush()
    await sink.close()
    assert path.read_bytes() == b'{"n":1}\n{"key":"k","result":2}\n'


async def test_from_file_to_file(tmp_path, mode):
    source, target = tmp_path / "in.ndjson", tmp_path / "out.ndjson"
    source.write_text("".join(f'{{"k":{n % 5},"n":{n}}}\n' for n in range(2000)))
    fn = same.options(mode=mode)
    await fn.keyed(connect.file(source), key="k").into(connect.file(target))
    written = sorted(event["n"] for event in values(await read(connect.file(target))))
    assert written == list(range(2000))


async def test_a_file_may_be_read_again(tmp_path):
    place = tmp_path / "in.ndjson"
    place.write_text("1\n2\n")
    source = connect.file(place)
    for _ in range(2):
        assert (await same.over(source).into(MemorySink())).read == 2


async def test_a_run_without_results_begins_its_file_anew(tmp_path):
    place = tmp_path / "out.ndjson"
    place.write_text("old\n")
    await same.over([]).into(connect.file(place))
    assert place.read_text() == "old\n"
    await same.over([]).into(connect.file(place, append=False))
    assert place.read_text() == ""


async def test_an_encoder_that_gives_no_bytes_is_named(tmp_path):
    with pytest.raises(TypeError, match="`encode` must give bytes, and gave str"):
        await same.over([1]).into(connect.file(tmp_path / "out", encode=str))


async def test_a_file_that_is_a_source_is_not_written(tmp_path):
    place = tmp_path / "in.ndjson"
    place.write_text("1\n")
    both = connect.file(place, append=False)
    with pytest.raises(ConnectError, match="is the source"):
        await same.over(both).into(both)
    with pytest.raises(ConnectError, match="is the source"):
        await same.over([]).into(both)
    assert place.read_text() == "1\n"


async def test_a_damaged_zst_file_is_named(tmp_path):
    zstd = pytest.importorskip("backports.zstd")
    broken = tmp_path / "broken.zst"
    broken.write_bytes(zstd.compress(b"1\n" * 1000)[:12] + b"no zstd at all")
    with pytest.raises(ConnectError, match=r"broken\.zst.*any further"):
        await read(connect.file(broken))


async def test_a_link_in_a_shared_folder_is_not_followed(tmp_path):
    shared, target = tmp_path / "shared", tmp_path / "target"
    shared.mkdir()
    shared.chmod(0o1777)
    target.write_text("keep")
    (shared / "out.ndjson").symlink_to(target)
    sink = connect.file(shared / "out.ndjson", append=False)
    with pytest.raises(ConnectError, match="it is a link in a folder that everybody may write to"):
        await sink.write([(None, 1)])
    await sink.close()
    assert target.read_text() == "keep"
