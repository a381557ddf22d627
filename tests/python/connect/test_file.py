"""Files as sources and sinks: lines, packed files, ones that grow, and what is wrong with them."""

import asyncio
import gzip
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import blocked, run_script
from velo import connect, stream_fn
from velo.connect import Bad
from velo.connect._file.packing import packer, unpacker
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


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
async def test_a_source_seeks_and_gives_the_rest(tmp_path, suffix):
    path = tmp_path / f"in.ndjson{suffix}"
    sink = connect.file(path)
    await sink.write([(None, n) for n in range(1200)])
    await sink.flush()
    await sink.close()
    items = await read(connect.file(path))
    for count in (1, 600, 1200):
        source = connect.file(path)
        source.seek({items[0].partition: items[count - 1].position, "another": 10_000_000})
        rest = await read(source)
        assert [(item.partition, item.position, item.value) for item in rest] == [
            (item.partition, item.position, item.value) for item in items[count:]
        ]
    source = connect.file(path, start=items[9].position)
    source.seek({})
    assert values(await read(source)) == list(range(10, 1200))
    source = connect.file(path)
    source.seek({items[0].partition: items[-1].position + 1000})
    with pytest.raises(PositionLost, match=r"in\.ndjson.* has .* bytes"):
        await read(source)


async def test_a_file_that_was_moved_goes_on_under_its_old_name(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "in.ndjson").write_text("1\n2\n3\n")
    items = await read(connect.file(old / "in.ndjson"))
    old.rename(new)
    source = connect.file(new / "in.ndjson")
    source.seek({items[1].partition: items[1].position})
    (rest,) = await read(source)
    assert (rest.value, rest.partition) == (3, items[1].partition)
    with pytest.raises(PositionLost, match="several files of its name"):
        connect.file(new / "in.ndjson").seek({"a/in.ndjson": 2, "b/in.ndjson": 4})


async def test_a_position_between_two_ends_of_lines_is_one_of_another_file(tmp_path):
    path = tmp_path / "in.ndjson"
    path.write_text("1234\n5\n6")
    last = (await read(connect.file(path)))[-1].position
    source = connect.file(path)
    source.seek({str(path): 2})
    with pytest.raises(PositionLost, match="no end of a line there"):
        await read(source)
    with open(path, "a") as file:
        file.write("\r\n7\n")
    source = connect.file(path)
    source.seek({str(path): last})
    assert values(await read(source)) == [7]


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


@pytest.mark.parametrize("instead", [b"", b'{"m":7}\n', b'{"m":7}\n{"m":8}\n'])
async def test_a_torn_line_that_is_cut_is_never_joined_to_what_follows(tmp_path, instead):
    path = tmp_path / "torn.ndjson"
    whole, torn = b'{"n":1}\n', b'{"n":12'
    path.write_bytes(whole + torn)
    source = connect.file(path, follow=True)
    iteration = aiter(source)
    assert values(await anext(iteration)) == [{"n": 1}]
    more = asyncio.ensure_future(anext(iteration))
    await blocked(more)
    with open(path, "r+b") as file:
        file.seek(len(whole))
        file.write(instead)
        file.truncate()
    with pytest.raises(PositionLost, match="was cut while it was read, at byte 15"):
        await more
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


@pytest.mark.parametrize("size", [101, 5_000_000])
async def test_a_long_line_at_the_end_is_bad_also_without_a_line_end(tmp_path, size):
    path = tmp_path / "in.ndjson"
    path.write_bytes(b"1\n" + b"x" * size)
    items = await read(connect.file(path, max_line=100))
    assert [type(item) is Bad for item in items] == [False, True]
    assert items[1].record.position == path.stat().st_size


async def test_a_torn_line_of_a_killed_program_is_ended(tmp_path):
    path = tmp_path / "out.ndjson"
    path.write_bytes(b'{"n":1}\n{"n":')
    sink = connect.file(path, keys=True)
    await sink.write([("k", 2)])
    await sink.flush()
    await sink.close()
    assert path.read_bytes() == b'{"n":1}\n{"key":"k","result":2}\n'


async def written_to(sink, *numbers):
    await sink.write([(None, number) for number in numbers])
    await sink.flush()


@pytest.mark.parametrize("append", [True, False])
async def test_a_sink_is_cut_back_to_its_mark(tmp_path, append):
    path = tmp_path / "out.ndjson"
    path.write_text("0\n")
    before = "0\n" if append else ""
    sink = connect.file(path, append=append)
    await sink.rewind(None)
    marks, contents = [await sink.mark()], [path.read_text()]
    assert contents == [before]
    for number in range(1, 4):
        await written_to(sink, *range(2000 * number))
        marks.append(await sink.mark())
        contents.append(path.read_text())
    await sink.close()
    for mark, content in zip(reversed(marks), reversed(contents), strict=True):
        sink = connect.file(path, append=append)
        await sink.rewind(mark)
        assert path.read_text() == content
        assert await sink.mark() == mark
        await written_to(sink, 7)
        await sink.close()
        assert path.read_text() == content + "7\n"


async def test_a_mark_is_of_the_file_and_not_of_its_folder(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    sink = connect.file(old / "out.ndjson")
    await written_to(sink, 1, 2)
    mark = await sink.mark()
    await written_to(sink, 3)
    await sink.close()
    shutil.copytree(old, new)
    await connect.file(new / "out.ndjson").rewind(mark)
    assert (new / "out.ndjson").read_text() == "1\n2\n"


async def test_a_file_that_is_not_the_marked_one_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "out.ndjson"
    sink = connect.file(path)
    first = await sink.mark()
    await written_to(sink, 10, 20, 30)
    mark = await sink.mark()
    await sink.close()
    for content, why in (
        ("10\n", "has 3 bytes"),
        ("10\n20\n40\n", "other bytes"),
        (None, "not there"),
    ):
        path.unlink() if content is None else path.write_text(content)
        sink = connect.file(path)
        with pytest.raises(PositionLost, match=rf"out\.ndjson.* byte 9.*{why}"):
            await sink.rewind(mark)
        await sink.close()
        assert (path.read_text() if path.exists() else None) == content
    sink = connect.file(path)
    await sink.rewind(first)
    await sink.close()


async def test_packed_files_pipes_and_devices_have_no_mark(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "out.gz", tmp_path / "pipe", "/dev/null"):
        sink = connect.file(path)
        await sink.rewind(None)
        assert await sink.mark() is None
        await sink.close()


PACKED = (".gz", ".bz2", ".xz", ".zst")


@pytest.mark.parametrize("suffix", PACKED)
async def test_what_was_flushed_can_be_read_at_once_and_stays_when_more_is_torn(tmp_path, suffix):
    path, copy = tmp_path / f"out.ndjson{suffix}", tmp_path / f"copy.ndjson{suffix}"
    sink = connect.file(path)
    for number in range(3):
        await written_to(sink, number)
        assert values(await read(connect.file(path))) == list(range(number + 1))
    whole = path.stat().st_size
    await written_to(sink, 3)
    await sink.close()
    # Whatever part of the last results a program has written before it is killed: what was
    # flushed is there, and the next one goes on behind that.
    for size in range(whole, path.stat().st_size):
        shutil.copy(path, copy)
        os.truncate(copy, size)
        sink = connect.file(copy)
        await written_to(sink, 4)
        await sink.close()
        assert values(await read(connect.file(copy))) == [0, 1, 2, 4]


@pytest.mark.parametrize("suffix", PACKED)
async def test_a_program_that_is_killed_leaves_a_packed_file_to_go_on_with(tmp_path, suffix):
    path = tmp_path / f"out.ndjson{suffix}"
    program = f"""
        import asyncio, os
        from velo import connect

        async def main():
            sink = connect.file({str(path)!r})
            await sink.write([(None, 1)])
            await sink.flush()
            await sink.write([(None, [n, os.urandom(20).hex()]) for n in range(20_000)])
            os._exit(9)

        asyncio.run(main())
    """
    code, _, errors = run_script(tmp_path, program)
    assert code == 9, errors
    sink = connect.file(path)
    await written_to(sink, 2)
    await sink.close()
    assert values(await read(connect.file(path))) == [1, 2]


@pytest.mark.parametrize("suffix", PACKED)
async def test_a_member_of_another_program_is_kept_whatever_it_looks_like(
    tmp_path, suffix, monkeypatch
):
    """Such as one that is long, or has whole members in it that are not packed again."""
    monkeypatch.setattr("velo.connect._file.members._TAIL", 4096)
    inner, path = tmp_path / f"inner{suffix}", tmp_path / f"out.bytes{suffix}"
    await written_to(sink := connect.file(inner), 1)
    await sink.close()
    content = inner.read_bytes().replace(b"\n", b"")
    lines = [os.urandom(40).hex().encode() for _ in range(5000)] + [content] * 3
    await written_to(sink := connect.file(path, encode="bytes"), *lines)
    await sink.close()
    size = path.stat().st_size
    await written_to(sink := connect.file(path, encode="bytes"), b"more")
    await sink.close()
    assert values(await read(connect.file(path, decode="bytes"))) == [*lines, b"more"]
    os.truncate(path, path.stat().st_size - 1)
    await written_to(sink := connect.file(path, encode="bytes"), b"other")
    await sink.close()
    assert path.stat().st_size > size
    assert values(await read(connect.file(path, decode="bytes"))) == [*lines, b"other"]


async def is_left_alone(path, content, match):
    """A sink refuses to go on with a file of this content."""
    path.write_bytes(content)
    sink = connect.file(path)
    with pytest.raises(ConnectError, match=match):
        await written_to(sink, 2)
    await sink.close()
    assert path.read_bytes() == content


@pytest.mark.parametrize("suffix", PACKED)
async def test_a_packed_file_that_is_damaged_is_named_and_left_alone(tmp_path, suffix):
    path = tmp_path / f"out.ndjson{suffix}"
    sink = connect.file(path)
    await written_to(sink, 1)
    whole = path.stat().st_size
    await written_to(sink, *range(1000))
    await sink.close()
    content = bytearray(path.read_bytes())
    content[whole : whole + 4] = b"none"
    for damaged in (bytes(content), b"1\n" * 10):
        await is_left_alone(path, damaged, r"out\.ndjson.* behind byte .* it is damaged")


@pytest.mark.parametrize("suffix", PACKED)
async def test_a_packed_file_without_a_whole_member_is_named_and_left_alone(tmp_path, suffix):
    """As of a program that flushes within one member, and was killed."""
    path = tmp_path / f"out.ndjson{suffix}"
    with packer(path)(path, "wb") as file:
        file.write(b"".join(b"%d\n" % number for number in range(1000)))
    torn = path.read_bytes()[:-9]
    await is_left_alone(path, torn, r"out\.ndjson.* was killed while it wrote it")


@pytest.mark.parametrize("suffix", PACKED)
async def test_the_members_of_a_torn_file_are_unpacked_twice_at_most(tmp_path, suffix, monkeypatch):
    path, begun = tmp_path / f"out.ndjson{suffix}", []

    def counted(path):
        mark, new = unpacker(path)
        return mark, lambda: begun.append(path) or new()

    sink = connect.file(path)
    for number in range(100):
        await written_to(sink, number)
    await sink.close()
    os.truncate(path, path.stat().st_size - 1)
    monkeypatch.setattr("velo.connect._file.members.unpacker", counted)
    sink = connect.file(path)
    await written_to(sink, 100)
    await sink.close()
    assert values(await read(connect.file(path))) == [*range(99), 100]
    assert 100 <= len(begun) <= 250


@pytest.mark.parametrize("suffix", PACKED)
async def test_a_packed_file_without_results_can_be_unpacked(tmp_path, suffix):
    path = tmp_path / f"out.ndjson{suffix}"
    for _ in range(2):
        await same.over([]).into(connect.file(path, append=False))
        assert path.stat().st_size > 0
        assert await read(connect.file(path)) == []


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
