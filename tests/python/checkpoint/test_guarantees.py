"""The table of guarantees: each kind of source with each kind of sink, when a tick dies."""

import asyncio
import itertools

import pytest

from replayed import Committing, TakingBack, by_key
from velo import stream_fn
from velo._diagnostics import failpoints
from velo.connect import Record

EVENTS = [{"k": n * n % 7, "v": n} for n in range(120)]
# Before the transaction of the checkpoint; behind that and the sink's, before the source is told.
TICK = [("tick", 3), ("tick", 5)]
# Before records are written to the journal, before they are on the disk, before they are
# acknowledged, and behind that.
JOURNAL = [("journal", step) for step in (1, 2, 3, 4)]


@stream_fn
async def counted(events, state):
    async for event in events:
        state["n"] = state.get("n", 0) + 1
        yield event["v"], state["n"]


class Crash(Exception):
    """The process dies here."""


class Queue:
    """What a server keeps: it gives records, and forgets them when they are acknowledged."""

    def __init__(self):
        self.left = dict(enumerate(EVENTS))
        self.tags = itertools.count()
        self.acknowledged = set()
        self.ticked = asyncio.Event()


class Acknowledged:
    """A source over a queue. It waits for a tick now and then, so that there are several."""

    name = "acknowledged"

    def __init__(self, queue):
        self.queue = queue
        self.delivered = {}

    def position(self, _number):
        return next(self.queue.tags)  # of this delivery

    async def __aiter__(self):
        for count, number in enumerate(list(self.queue.left), 1):
            position = self.position(number)
            self.delivered[position] = number
            self.queue.ticked.clear()
            yield [Record(self.queue.left[number], partition="p", position=position)]
            if count % 20 == 0:
                await self.queue.ticked.wait()

    async def commit(self, positions):
        for position in [p for p in self.delivered if p <= positions["p"]]:
            number = self.delivered.pop(position)
            self.queue.acknowledged.add(number)
            self.queue.left.pop(number, None)


class KeepsPositions(Acknowledged):
    """A record that comes again has its old position."""

    stable = True

    def position(self, number):
        return number


class GoesBack(KeepsPositions):
    """It can be read again from any position."""

    def seek(self, positions):
        self.queue.left = dict(enumerate(EVENTS))
        for number in range(positions.get("p", -1) + 1):
            del self.queue.left[number]


class Forgets(Acknowledged):
    """It gives each record once, and keeps none."""

    async def __aiter__(self):
        async for (record,) in super().__aiter__():
            self.queue.left.pop(self.delivered[record.position])
            yield [record]


class Plain:
    """A sink that neither takes results back nor has a commit point."""

    name = "plain"

    def __init__(self):
        self.kept = []

    async def write(self, results):
        self.kept.extend(results)

    async def flush(self):
        pass


exact = pytest.mark.parametrize("sink", [TakingBack, Committing], ids=["takes-back", "commits"])
plain = pytest.mark.parametrize("sink", [Plain], ids=["plain"])
each = pytest.mark.parametrize("sink", [TakingBack, Committing, Plain])
KNOWN = [(GoesBack, at) for at in TICK] + [(KeepsPositions, at) for at in TICK + JOURNAL]
known = pytest.mark.parametrize(
    ("source", "at"),
    [pytest.param(source, at, id=f"{source.__name__}-{at[0]}-{at[1]}") for source, at in KNOWN],
)
steps = pytest.mark.parametrize("at", TICK + JOURNAL, ids=lambda at: f"{at[0]}-{at[1]}")


@pytest.fixture
def results(mode, tmp_path):
    """The results of a run that dies somewhere for the third time, and of the run behind it."""

    async def run(source, sink, at, queue=None):
        queue, sink = queue or Queue(), sink()
        left = itertools.count(1)

        def hook(area, reached):
            if (area, reached) == ("tick", 6):
                queue.ticked.set()
            if (area, reached) == at and next(left) == 3:
                raise Crash

        async def attempt():
            connected = counted.options(mode=mode).keyed(source(queue), key="k")
            await connected.into(sink, checkpoint=tmp_path, checkpoint_every=0.01)

        failpoints.hook = hook
        with pytest.raises(Crash):
            await attempt()
        if isinstance(sink, Committing):
            sink = Committing(sink.kept, sink.epochs)  # what was not committed is gone
        await attempt()
        return sink.kept

    yield run
    failpoints.hook = None


def expected():
    counts = dict.fromkeys(range(7), 0)
    found = []
    for event in EVENTS:
        counts[event["k"]] += 1
        found.append((event["k"], (event["v"], counts[event["k"]])))
    return found


def values(found):
    return sorted(value for _, (value, _) in found)


def count_up(found):
    """Whether each key has counted each of its events, and no count is lost or there twice."""
    return all(
        [count for _, count in each] == list(range(1, len(each) + 1))
        for each in by_key(found).values()
    )


@known
@exact
async def test_exactly_once(mode, results, source, sink, at):
    assert by_key(await results(source, sink, at)) == by_key(expected())


@known
@plain
async def test_states_exactly_once_and_results_at_least_once(mode, results, source, sink, at):
    found = await results(source, sink, at)
    assert set(found) == set(expected())
    if at == ("tick", 3):
        assert len(found) > len(EVENTS)  # those since the last tick were written again


@steps
@each
async def test_what_is_in_the_journal_is_an_event_once(mode, results, sink, at):
    found = await results(Acknowledged, sink, at)
    assert set(values(found)) == set(range(len(EVENTS)))  # nothing is lost
    if sink is not Plain:
        assert count_up(found)
        if at in (*TICK, ("journal", 1), ("journal", 4)):
            assert by_key(found) == by_key(expected())


@each
async def test_a_redelivery_without_a_stable_position_is_a_second_event(mode, results, sink):
    found = await results(Acknowledged, sink, ("journal", 3))  # before it is acknowledged
    assert set(values(found)) == set(range(len(EVENTS)))
    assert len(found) > len(EVENTS)
    if sink is not Plain:
        assert count_up(found)


@steps
@each
async def test_of_a_source_that_forgets_what_is_in_the_journal_is_not_lost(mode, results, sink, at):
    found = await results(Forgets, sink, at, queue := Queue())
    assert queue.acknowledged <= set(values(found))
    assert set(values(found)) <= set(range(len(EVENTS)))
    if at == ("journal", 1):
        assert len(set(values(found))) < len(EVENTS)  # it was on its way
    if sink is not Plain:
        assert len(set(values(found))) == len(found)  # nothing comes twice
        assert count_up(found)
