"""The files of a journal: what was written is read, and what has changed since is named."""

import errno
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_disk import enlarge, mounted
from velo._checkpoint import event_journal, journal_file
from velo._checkpoint.event_journal import DiskFull, EventJournal
from velo._checkpoint.journal_file import Damaged, Frame
from velo.errors import CheckpointError

payloads = st.lists(st.binary(max_size=60), max_size=5)


def written(path, payloads, first=1):
    """The bytes of a file, and where each of its frames begins."""
    path.unlink(missing_ok=True)
    writer, begins, frames = journal_file.Writer(path, first, 0), [], []
    for number, payload in enumerate(payloads, first):
        begins.append(writer.size)
        frames.append(Frame(number, 1, payload))
        writer.append(frames[-1])
    writer.close()
    return path.read_bytes(), begins, frames


def frames_of(data):
    """The frames that are read, and what is wrong behind them."""
    found = []
    try:
        for frame in journal_file.read(data):
            found.append(frame)
    except Damaged as damaged:
        return found, damaged
    return found, None


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("file") / "a.log"


@given(payloads)
def test_what_is_written_is_read(file, payloads):
    data, _, frames = written(file, payloads)
    assert frames_of(data) == (frames, None)


@given(payloads, st.data())
def test_a_file_that_breaks_off_anywhere_has_the_frames_before(file, payloads, draw):
    data, begins, frames = written(file, payloads)
    size = draw.draw(st.integers(begins[0] if begins else len(data), len(data)))
    found, damaged = frames_of(data[:size])
    assert found == frames[: len(found)]
    ends = [*begins[1:], len(data)]
    assert len(found) == sum(end <= size for end in ends) if begins else not found
    assert damaged is None or damaged.by_crash


@given(payloads.filter(bool), st.data())
def test_any_byte_that_changes_is_noticed(file, payloads, draw):
    data, begins, frames = written(file, payloads)
    at = draw.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[at] ^= draw.draw(st.integers(1, 255))
    found, damaged = frames_of(bytes(changed))
    assert damaged is not None
    hit = sum(begin <= at for begin in begins) - 1
    assert found == frames[: max(hit, 0)]
    # A crash may have torn the last one; nothing else.
    assert damaged.by_crash == (hit == len(frames) - 1)


@given(payloads, st.binary(max_size=200))
def test_what_a_crash_has_left_at_the_end_is_no_frame(file, payloads, rest):
    data, _, frames = written(file, payloads)
    found, damaged = frames_of(data + rest)
    assert found == frames
    assert damaged is None if not rest else damaged.by_crash


@given(st.binary(max_size=200))
def test_other_bytes_are_no_frames(data):
    assert frames_of(data)[0] == []
    assert frames_of(data)[1] is not None


def test_frames_of_another_file_are_no_frames(file):
    other, begins, _ = written(file, [b"one", b"two"])
    data, _, frames = written(file, [other[begins[0] :]])
    assert frames_of(data) == (frames, None)
    found, damaged = frames_of(data + other[begins[0] :])
    assert found == frames
    assert damaged.by_crash


# A folder of them.


@pytest.fixture
def path(tmp_path):
    return tmp_path


async def filled(path, count=10, most=200, behind=0):
    """A journal of several files, which is closed; its files."""
    log = EventJournal(path, behind, most=most)
    for _ in range(count):
        await log.append(b"x" * 80, 1)
    log.close()
    return sorted((path / "journal").iterdir())


async def numbers(path, behind=0):
    log = EventJournal(path, behind)
    try:
        return [frame.first async for frame in log.frames()], log.next
    finally:
        log.close()


async def test_records_are_read_again_and_the_numbers_go_on(path):
    files = await filled(path)
    assert len(files) > 2
    assert await numbers(path) == (list(range(1, 11)), 11)
    await filled(path)
    assert await numbers(path) == (list(range(1, 21)), 21)
    assert (await numbers(path, 30))[1] == 31


async def test_files_that_are_absorbed_are_removed_but_for_the_last_one(path):
    log = EventJournal(path, 0, most=200)
    for _ in range(10):
        await log.append(b"x" * 80, 1)
    await log.drop(4)
    assert event_journal.size_of(path) < 10 * 200
    log.close()
    found, _ = await numbers(path, 4)
    assert found[0] <= 5
    log = EventJournal(path, 4, most=200)
    await log.drop(10)
    log.close()
    assert len(list((path / "journal").iterdir())) == 1
    assert (await numbers(path, 10))[1] == 11


async def test_a_last_write_that_was_torn_is_dropped(path):
    files = await filled(path)
    whole = files[-1].read_bytes()
    for size in range(len(whole) - 80, len(whole)):
        files[-1].write_bytes(whole[:size])
        found, after = await numbers(path)
        assert found == list(range(1, 10))
        assert after == 10
    await filled(path, 1)  # it goes on behind the last one that is whole
    assert await numbers(path) == (list(range(1, 11)), 11)


async def test_a_file_that_has_no_frame_is_removed(path):
    files = await filled(path)
    data = files[-1].read_bytes()
    head = next(size for size in range(len(data)) if not frames_of(data[:size])[1])
    files[-1].write_bytes(data[:head])
    found, after = await numbers(path)
    assert after == int(files[-1].stem) == found[-1] + 1
    assert not files[-1].exists()


@pytest.mark.parametrize("which", [0, 1, -2])
async def test_a_change_in_the_middle_is_named(path, which):
    files = await filled(path)
    data = bytearray(files[which].read_bytes())
    data[-5] ^= 1
    files[which].write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"torn: `journal/{files[which].name}` has changed"):
        EventJournal(path, 0)
    assert event_journal.problems(path)
    assert files[which].read_bytes() == data, "nothing is mended"


async def test_a_file_that_is_missing_is_named(path):
    files = await filled(path)
    kept = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(CheckpointError, match="the journal has no records 3 to 4"):
        EventJournal(path, 0)
    files[1].write_bytes(kept)
    files[0].unlink()
    with pytest.raises(CheckpointError, match="the records 1 to 2 are missing"):
        EventJournal(path, 0)
    assert (await numbers(path, 2))[0][0] == 3
    shutil.rmtree(path / "journal")
    with pytest.raises(CheckpointError, match="its journal is missing"):
        EventJournal(path, 2)


async def test_a_foreign_or_newer_file_is_named(path):
    files = await filled(path)
    kept = files[-1].read_bytes()
    files[-1].write_bytes(b"SQLite format 3\0" * 10)
    with pytest.raises(CheckpointError, match="is no journal of velo"):
        EventJournal(path, 0)
    newer = bytearray(kept)
    newer[8] = 9
    files[-1].write_bytes(newer)
    with pytest.raises(CheckpointError, match="written by a newer velo, in format 9"):
        EventJournal(path, 0)
    files[-1].write_bytes(kept)
    files[-1].rename(files[-1].with_stem("77".zfill(20)))
    with pytest.raises(CheckpointError, match="has another name"):
        EventJournal(path, 0)


async def test_a_disk_that_is_really_full_has_nothing_of_what_failed(tmp_path):
    with mounted(tmp_path / "disk", "64k") as disk:
        log = EventJournal(disk, 0, most=8 << 20)
        done = 0
        with pytest.raises(DiskFull, match="full"):
            while True:
                await log.append(b"x" * 5000, 1)
                done += 1
        with pytest.raises(DiskFull):
            await log.append(b"x" * 5000, 1)
        enlarge(disk, "1m")
        assert await log.append(b"x" * 5000, 1) == done + 1
        log.close()
        assert await numbers(disk) == (list(range(1, done + 2)), done + 2)


async def test_a_write_that_fails_otherwise_is_an_error(path, monkeypatch):
    def fails(_fd):
        raise OSError(errno.EIO, "Input/output error")

    log = EventJournal(path, 0)
    await log.append(b"first", 1)
    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(CheckpointError, match="cannot be written: input/output error"):
        await log.append(b"second", 1)
    log.close()
    assert await numbers(path) == ([1], 2)


async def test_it_is_copied_while_it_is_written(path):
    log = EventJournal(path, 0, most=200)
    for _ in range(6):
        await log.append(b"x" * 80, 1)
    copy = path / "copy"
    copy.mkdir()
    event_journal.copy_to(path, copy)
    await log.append(b"x" * 80, 1)
    await log.drop(3)
    log.close()
    assert await numbers(copy) == ([1, 2, 3, 4, 5, 6], 7)
    assert not event_journal.problems(copy)
    event_journal.clear(copy)
    assert await numbers(copy) == ([], 1)
