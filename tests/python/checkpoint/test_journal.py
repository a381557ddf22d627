"""Runs whose source gives each record once: what the journal keeps of it, and for how long."""

import asyncio
import errno
import json
import logging

import pytest
from click.testing import CliRunner

from helpers import HANG
from replayed import Once, TakingBack, by_key, expected, sequence
from small_disk import enlarge, mounted
from velo import stream_fn
from velo._api import ticks
from velo._api.journalled import unabsorbed
from velo._checkpoint import event_journal, journal_file
from velo._core import dumps
from velo._diagnostics import failpoints
from velo.cli.checkpoint import checkpoint
from velo.connect import Record
from velo.connect.memory import MemorySink
from velo.errors import CheckpointError


def events_of(count, keys=7):
    return [{"k": (5 * n + n // 3) % keys, "v": n} for n in range(count)]


async def until(true):
    async with asyncio.timeout(HANG):
        while not true():
            await asyncio.sleep(0.001)


@pytest.fixture
def hook(monkeypatch):
    """Sets what is called at each step of a tick and of the journal."""

    def set_(call):
        monkeypatch.setattr(failpoints, "hook", call)

    return set_


class Crash(Exception):
    """The process dies here."""


async def test_records_are_acknowledged_before_any_tick(mode, tmp_path):
    async def more():
        await until(lambda: source.acknowledged == source.given)

    sink, events = TakingBack(), events_of(100)
    source = Once(list(events), before=more)
    run = sequence.options(mode=mode).keyed(source, key="k")
    await run.into(sink, checkpoint=tmp_path, checkpoint_every=60)
    assert by_key(sink.kept) == expected(events)


async def test_a_record_keeps_all_of_itself(mode, tmp_path, hook):
    @stream_fn(mode=mode)
    async def shown(events, state):
        async for event in events:
            record = events.record
            yield event, record.key, record.topic, record.position, record.timestamp, record.headers

    def dies(area, _step):
        if area == "tick":
            raise Crash

    values, sink = [{"v": 1}, b"raw", [2, (3,)]], TakingBack()
    hook(dies)
    with pytest.raises(Crash):
        await shown.over(Once(list(values))).into(sink, checkpoint=tmp_path)
    hook(None)
    await shown.over(Once([])).into(sink, checkpoint=tmp_path)
    found = [result for _, result in sink.kept]
    assert found == [
        (value, "key", "topic", (number, number - 1), 1.5, (("h", b"v"),))
        for number, value in enumerate(values, 1)
    ]


async def test_what_is_no_event_goes_to_the_dead_letters_after_a_crash_too(tmp_path, hook):
    def dies(area, step):
        if (area, step) == ("journal", 4):
            raise Crash

    hook(dies)
    source, letters = Once([{"k": 1, "v": 1}, ValueError("half a line")]), MemorySink()
    with pytest.raises(Crash):
        await sequence.keyed(source, key="k").into(MemorySink(), checkpoint=tmp_path)
    hook(None)
    run = sequence.keyed(Once([]), key="k")
    await run.into(MemorySink(), checkpoint=tmp_path, dead_letter=letters)
    ((_, letter),) = letters.results
    assert letter.value["error"] == "ValueError: ValueError: half a line"
    assert letter.value["value"] == "{"


async def test_the_journal_has_what_no_tick_has_absorbed_and_little_more(
    mode, tmp_path, monkeypatch
):
    monkeypatch.setattr(event_journal.EventJournal.__init__, "__kwdefaults__", {"most": 2000})
    # A tick that a busy machine makes long delays none of the next ones.
    monkeypatch.setattr(ticks, "_TIMES_COST", 0)
    sizes, events = [], events_of(600)

    async def more():
        if source.given % 50 == 0:
            await until(lambda: run.figures.committed.get("p", (0,))[0] == source.given)
        sizes.append(event_journal.size_of(tmp_path))

    source, sink = Once(list(events), before=more), TakingBack()
    run = sequence.options(mode=mode).keyed(source, key="k")
    await run.into(sink, checkpoint=tmp_path, checkpoint_every=0.01)
    assert by_key(sink.kept) == expected(events)
    assert len(sizes) == 120
    assert max(sizes) < 12_000  # of more than 50,000 bytes in all
    assert event_journal.size_of(tmp_path) < 4000


async def test_a_run_that_is_stopped_has_all_that_was_read(mode, tmp_path):
    """Of a source that cannot be stopped, which waits for a record that does not come."""
    events, sink = events_of(20), TakingBack()
    read = asyncio.Event()

    async def waits():
        if source.given == 10:
            read.set()
            await asyncio.Event().wait()

    source = Once(list(events), before=waits)
    run = sequence.options(mode=mode).keyed(source, key="k")
    task = asyncio.create_task(run.into(sink, checkpoint=tmp_path))
    async with asyncio.timeout(HANG):
        await read.wait()
        run.stop()
        await task
    assert len(sink.kept) == 10
    sink = TakingBack(sink.kept)
    await (
        sequence.options(mode=mode)
        .keyed(Once(source.values), key="k")
        .into(sink, checkpoint=tmp_path)
    )
    assert by_key(sink.kept) == expected(events)


async def test_an_error_of_the_source_comes_behind_what_was_read(tmp_path):
    async def dies():
        if source.given == 10:
            raise ConnectionError("the server is gone")

    events, sink = events_of(20), TakingBack()
    source = Once(list(events), before=dies)
    with pytest.raises(ConnectionError):
        await sequence.keyed(source, key="k").into(sink, checkpoint=tmp_path)
    sink = TakingBack(sink.kept)
    await sequence.keyed(Once(source.values), key="k").into(sink, checkpoint=tmp_path)
    assert by_key(sink.kept) == expected(events)


async def test_events_of_an_iterator_are_in_the_journal(mode, tmp_path, hook):
    def dies(area, step):
        if (area, step) == ("tick", 3):
            raise Crash

    events, sink = events_of(20), TakingBack()
    left = iter(events)
    hook(dies)
    fn = sequence.options(mode=mode)
    with pytest.raises(Crash):
        await fn.keyed(left, key="k").into(sink, checkpoint=tmp_path)
    hook(None)
    sink = TakingBack(sink.kept)
    await fn.keyed(left, key="k").into(sink, checkpoint=tmp_path)
    assert by_key(sink.kept) == expected(events)


class Plain:
    """An object that only a pickle can hold."""


async def test_a_value_that_is_not_plain_is_refused_with_what_to_do(tmp_path):
    source = Once([{"k": 1, "v": 1}, {"k": 1, "v": Plain()}])
    with pytest.raises(
        CheckpointError, match=r"the record at position 1 of 'p' of `once` .* `decode=`"
    ):
        await sequence.keyed(source, key="k").into(MemorySink(), checkpoint=tmp_path)
    assert source.acknowledged == 0


async def test_a_value_that_is_not_plain_is_kept_where_that_is_trusted(tmp_path, hook):
    @stream_fn
    async def kinds(events, state):
        async for event in events:
            yield type(event).__name__

    def dies(area, _step):
        if area == "tick":
            raise Crash

    hook(dies)
    sink = TakingBack()
    settings = {"checkpoint": tmp_path, "trusted": True}
    with pytest.raises(Crash):
        await kinds.over(Once([Plain()])).into(sink, **settings)
    hook(None)
    with pytest.raises(
        CheckpointError, match=r"a record in the journal .* it holds a pickle, .* imports `.*Plain`"
    ):
        await kinds.over(Once([])).into(sink, checkpoint=tmp_path)
    await kinds.over(Once([])).into(sink, **settings)
    assert sink.kept == [(None, "Plain")]


async def test_while_the_disk_is_full_nothing_is_acknowledged(mode, tmp_path, caplog):
    events, sink = [{"k": n % 7, "v": n, "text": "x" * 5000} for n in range(60)], TakingBack()

    async def more():
        await until(lambda: source.acknowledged == source.given)

    with mounted(tmp_path / "disk", "200k") as disk:
        source = Once(list(events), batch=1, before=more)
        run = sequence.options(mode=mode).keyed(source, key="k")
        task = asyncio.create_task(run.into(sink, checkpoint=disk, checkpoint_every=60))
        with caplog.at_level(logging.WARNING, "velo.connect"):
            await until(lambda: "once: the disk of the checkpoint" in caplog.text)
            before = source.acknowledged
            assert 0 < before < 60
            assert "nothing more is read or acknowledged" in caplog.text
            enlarge(disk, "8m")
            await until(lambda: "goes on reading" in caplog.text)
        await task
        assert source.acknowledged == 60
        assert caplog.text.count("nothing more is read") == 1
    assert by_key(sink.kept) == expected(events)


class Unacknowledged:
    """A source with stable positions, whose server hears of no acknowledgement.

    It gives two records again with each start, and then a new one.
    """

    name = "unacknowledged"
    stable = True

    def __init__(self, number):
        self.number = number

    async def __aiter__(self):
        for position in range(max(0, self.number - 2), self.number + 1):
            yield [Record({"k": 0, "v": position}, partition="p", position=position)]

    async def commit(self, positions):
        raise Crash


async def test_what_may_come_again_is_remembered_over_many_starts(tmp_path):
    sink, starts = TakingBack(), 12
    for number in range(starts):
        sink = TakingBack(sink.kept)
        with pytest.raises(Crash):
            await sequence.keyed(Unacknowledged(number), key="k").into(sink, checkpoint=tmp_path)
    sink = TakingBack(sink.kept)
    await sequence.keyed(Once([]), key="k").into(sink, checkpoint=tmp_path)
    assert by_key(sink.kept) == expected([{"k": 0, "v": number} for number in range(starts)])


async def test_what_may_come_again_is_remembered_when_a_new_file_had_no_room(
    tmp_path, monkeypatch, caplog
):
    class Given:
        """A source with stable positions, whose server hears of some acknowledgements."""

        name, stable = "given", True

        def __init__(self, *positions, acknowledged=(), between=None):
            self.positions = positions
            self.acknowledged = acknowledged
            self.between = between

        async def __aiter__(self):
            for number, position in enumerate(self.positions):
                if number and self.between is not None:
                    await self.between()
                yield [Record({"k": 0, "v": position}, partition="p", position=position)]

        async def commit(self, positions):
            if positions["p"] not in self.acknowledged:
                raise Crash

    async def first_is_absorbed():
        await until(lambda: not first.exists())

    def fills(descriptor, data, at):
        if at:  # there was room for the header
            monkeypatch.setattr(journal_file, "_write", write)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor, data, at)

    sink, write = TakingBack(), journal_file._write

    async def run(*positions, **settings):
        keyed = sequence.keyed(Given(*positions, **settings), key="k")
        again = TakingBack(sink.kept)
        await keyed.into(again, checkpoint=tmp_path, checkpoint_every=0.01)

    with pytest.raises(Crash):
        await run(0)
    (first,) = (tmp_path / "journal").iterdir()
    monkeypatch.setattr(journal_file, "_write", fills)
    with pytest.raises(Crash):
        await run(1, 2, acknowledged=[1], between=first_is_absorbed)
    assert "nothing more is read or acknowledged" in caplog.text
    await run(0, 2, 3, acknowledged=[0, 2, 3])
    assert by_key(sink.kept) == expected([{"k": 0, "v": number} for number in range(4)])


async def test_many_records_that_come_again_do_not_stop_the_reading(tmp_path):
    """Nobody takes those that are known, so that nobody makes room for others by that."""

    class Many:
        name, stable = "many", True

        def __init__(self, acknowledges):
            self.acknowledges = acknowledges

        async def __aiter__(self):
            for first in (0, 5000, 5001):
                last = 5000 if first == 0 else first + 1
                yield [Record({"k": 0, "v": n}, "k", "t", "p", n) for n in range(first, last)]

        async def commit(self, positions):
            if not self.acknowledges:
                raise Crash

    sink = TakingBack()
    with pytest.raises(Crash):
        await sequence.keyed(Many(False), key="k").into(sink, checkpoint=tmp_path)
    sink = TakingBack(sink.kept)
    async with asyncio.timeout(HANG):
        await sequence.keyed(Many(True), key="k").into(sink, checkpoint=tmp_path)
    assert by_key(sink.kept) == expected([{"k": 0, "v": n} for n in range(5002)])


async def test_positions_ahead_do_not_grow_with_starts(tmp_path):
    """A server that acknowledges after the crash gives the record to nobody again."""

    class Stable(Once):
        stable = True

        async def commit(self, positions):
            await super().commit(positions)
            if not self.values:
                raise Crash

    sink, values = TakingBack(), events_of(60)
    for first in range(0, 60, 5):
        sink, source = TakingBack(sink.kept), Stable(values[first : first + 5])
        source.given = first
        with pytest.raises(Crash):
            await sequence.keyed(source, key="k").into(sink, checkpoint=tmp_path)
    sink = TakingBack(sink.kept)
    await sequence.keyed(Once([]), key="k").into(sink, checkpoint=tmp_path)
    assert by_key(sink.kept) == expected(values)
    looked = CliRunner().invoke(checkpoint, ["inspect", str(tmp_path), "--json"])
    (position,) = json.loads(looked.stdout)["positions"]
    assert position["ahead"] == 0


async def test_the_command_knows_the_journal(tmp_path, hook):
    def dies(area, step):
        if (area, step) == ("tick", 3):
            raise Crash

    hook(dies)
    path, events, sink = tmp_path / "checkpoint", events_of(20), TakingBack()
    with pytest.raises(Crash):
        await sequence.keyed(Once(list(events)), key="k").into(sink, checkpoint=path)
    hook(None)

    def command(*arguments):
        return CliRunner().invoke(checkpoint, [*map(str, arguments)])

    assert json.loads(command("inspect", path, "--json").stdout)["journal"] > 500
    assert "journal  " in command("inspect", path).stdout
    assert command("verify", path).exit_code == 0
    copy = tmp_path / "copy"
    assert command("copy", path, copy).exit_code == 0
    again = TakingBack()
    await sequence.keyed(Once([]), key="k").into(again, checkpoint=copy)
    assert by_key(again.kept) == expected(events)

    first = min((path / "journal").iterdir())
    data = bytearray(first.read_bytes())
    data[20] ^= 1
    first.write_bytes(data)
    refused = command("verify", path)
    assert refused.exit_code == 1
    assert f"`journal/{first.name}` is no journal of velo" in refused.stdout
    with pytest.raises(CheckpointError, match="is torn"):
        await sequence.keyed(Once([]), key="k").into(sink, checkpoint=path)
    assert command("reset", path, "--yes").exit_code == 0
    sink = TakingBack(sink.kept)
    await sequence.keyed(Once(list(events)), key="k").into(sink, checkpoint=path)
    assert by_key(sink.kept) == expected(events)


@pytest.mark.parametrize(
    ("value", "counts"), [(1, (5, 0, 2)), (Plain(), (5, 1, 3))], ids=["plain", "pickled"]
)
async def test_records_that_no_tick_has_absorbed_are_counted(tmp_path, value, counts):
    """Where a pickle hides their partition, the one that is furthest behind may have them."""
    journal = event_journal.EventJournal(tmp_path, 0)
    for partitions in (["p", "q", "p"], ["q", "p"]):
        packed = [dumps((partition, "at", value)) for partition in partitions]
        await journal.append(dumps((None, packed)), len(packed))
    journal.close()
    assert counts == (
        unabsorbed(tmp_path, {}, {}),
        unabsorbed(tmp_path, {"p": (5, "at"), "q": (4, "at")}, {}),
        unabsorbed(tmp_path, {"p": (1, "at"), "q": (2, "at")}, {"p": [(5, "at")]}),
    )
