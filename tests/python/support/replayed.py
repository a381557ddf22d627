"""Sources that are read again, sinks that are exact, and a function that shows what it has seen."""

import asyncio
import collections

from velo import stream_fn
from velo.connect import Bad, Record

__all__ = [
    "Again",
    "Committing",
    "Once",
    "Redelivering",
    "TakingBack",
    "by_key",
    "expected",
    "sequence",
]


@stream_fn
async def sequence(events, state):
    """Shows which events it has seen, in which order, and how many there were at the end."""
    async for event in events:
        if event.get("returns"):
            return
        if event.get("fails"):
            raise ValueError("refused")
        state["n"] = state.get("n", 0) + 1
        state["hash"] = (state.get("hash", 7) * 31 + event["v"]) % 1_000_003
        yield state["n"], state["hash"]
    yield "end", state.get("n", 0)


def expected(events):
    """What `sequence` gives for events, key by key, when nobody disturbs it."""
    results = collections.defaultdict(list)
    states = collections.defaultdict(lambda: (0, 7))
    for event in events:
        n, value = states[event["k"]]
        states[event["k"]] = n + 1, (value * 31 + event["v"]) % 1_000_003
        results[event["k"]].append(states[event["k"]])
    for key, (n, _) in states.items():
        results[key].append(("end", n))
    return dict(results)


def by_key(results):
    """Results in the order in which they came, key by key."""
    found = collections.defaultdict(list)
    for key, result in results:
        found[key].append(result)
    return dict(found)


class Again:
    """A source that can be read again: lists of values by partition, in batches.

    Args:
        partitions: The values of each partition.
        batch: How many are given at a time.
        pauses: Awaited with the number of each batch before it is given: a test's own events, or
            its failure.

    """

    name = "again"

    def __init__(self, partitions, batch=10, pauses=None):
        self.partitions = partitions
        self.batch = batch
        self.pauses = pauses
        self.at = dict.fromkeys(partitions, 0)
        self.committed = {}
        self.given = 0
        self._stopped = False

    def seek(self, positions):
        for partition, position in positions.items():
            self.at[partition] = position + 1

    async def __aiter__(self):
        number = 0
        while left := [p for p, values in self.partitions.items() if self.at[p] < len(values)]:
            for partition in left:
                if self.pauses is not None:
                    await self.pauses(number)
                number += 1
                if self._stopped:
                    return
                first = self.at[partition]
                values = self.partitions[partition][first : first + self.batch]
                self.at[partition] += len(values)
                self.given += len(values)
                yield [
                    Record(value, partition=partition, position=first + index)
                    for index, value in enumerate(values)
                ]
                await asyncio.sleep(0)

    def stop(self):
        self._stopped = True

    async def commit(self, positions):
        self.committed.update(positions)


class Redelivering:
    """A source that gives again what was not committed, at the same positions, in another order."""

    name = "redelivering"
    stable = True

    def __init__(self, values, pauses=None):
        self.left = dict(enumerate(values))
        self.pauses = pauses

    async def __aiter__(self):
        for number, (position, value) in enumerate(list(self.left.items())):
            if self.pauses is not None:
                await self.pauses(number)
            yield [Record(value, partition="p", position=position)]

    async def commit(self, positions):
        for position in list(self.left):
            if position <= positions["p"]:
                del self.left[position]


class Once:
    """A source that gives each of some values once, in batches, and notes what is acknowledged.

    It cannot be stopped.

    Args:
        values: The values, which are taken from this list.
        batch: How many are given at a time.
        before: Awaited before each batch.

    """

    name = "once"

    def __init__(self, values, batch=5, before=None):
        self.values = values
        self.batch = batch
        self.before = before
        self.given = 0
        self.acknowledged = 0

    async def __aiter__(self):
        while self.values:
            if self.before is not None:
                await self.before()
            some = [self.values.pop(0) for _ in range(min(self.batch, len(self.values)))]
            items = []
            for number, value in enumerate(some, self.given):
                if isinstance(value, Exception):
                    items.append(Bad(Record(b"{", partition="p", position=number), value))
                else:
                    items.append(Record(value, "key", "topic", "p", number, 1.5, (("h", b"v"),)))
            self.given += len(some)
            yield items

    async def commit(self, positions):
        self.acknowledged = positions["p"] + 1


class TakingBack:
    """A sink that takes back what a mark does not cover. What it has outlives it, as in a file."""

    name = "taking back"

    def __init__(self, kept=None):
        self.kept = [] if kept is None else kept

    async def write(self, results):
        self.kept.extend(results)

    async def flush(self):
        pass

    async def mark(self):
        return len(self.kept)

    async def rewind(self, mark):
        if mark is not None:
            assert mark <= len(self.kept)
            del self.kept[mark:]


class Committing:
    """A sink with a commit point of its own. What it shows, and `epochs`, outlive it."""

    name = "committing"

    def __init__(self, kept=None, epochs=None):
        self.kept = [] if kept is None else kept
        self.epochs = {} if epochs is None else epochs
        self._written = []

    async def write(self, results):
        self._written.extend(results)

    async def flush(self):
        pass

    async def begin(self, name, epoch):
        self._name = name
        return self.epochs.get(name, 0)

    async def commit(self, epoch, positions):
        self.kept.extend(self._written)
        self._written = []
        self.epochs[self._name] = epoch
