"""A topic whose partitions a test gives to members and takes away, and results with epochs."""

import asyncio
import collections
import itertools

from velo.connect import Assigned, Lost, Record, Revoked
from velo.connect.errors import Superseded

__all__ = ["Ledger", "MemberSource", "Topic"]


class Topic:
    """Partitions `("t", NUMBER)` with events; members read them.

    Attributes:
        owners: The member that each partition was given to last.
        count: How many partitions there are.

    """

    def __init__(self, count):
        self.events = {}
        self.grow(count)
        self.committed = {}
        self.owners = {}
        self.grown = asyncio.Condition()

    def grow(self, count):
        """Have so many partitions."""
        self.count = count
        for number in range(count):
            self.events.setdefault(("t", number), [])

    async def put(self, number, *events):
        """Add events to a partition."""
        self.events["t", number] += events
        async with self.grown:
            self.grown.notify_all()


class MemberSource:
    """A member: it reads what a test gives it.

    Attributes:
        places: Where it was told to begin, in this order.
        paused: The partitions that are paused.

    """

    name = "topic t"
    shares = True

    def __init__(self, topic, batch=10):
        self.places = []
        self.paused = set()
        self.is_shared = self.is_closed = False
        self._topic = topic
        self._batch = batch
        self._at = {}
        self._items = asyncio.Queue()
        self._asked = None
        self._stopped = asyncio.Event()

    # For a test.

    def assign(self, *numbers):
        """Assign partitions."""
        partitions = [("t", number) for number in numbers]
        self._topic.owners.update(dict.fromkeys(partitions, self))
        self._items.put_nowait(Assigned(partitions))

    async def give(self, *numbers):
        """Assign partitions, and wait until they are read."""
        self.assign(*numbers)
        async with self._topic.grown:
            await self._topic.grown.wait_for(
                lambda: all(("t", number) in self._at for number in numbers)
            )

    async def take(self, *numbers):
        """Revoke partitions, and wait until the next item is asked for."""
        await self._put_and_wait(Revoked([("t", number) for number in numbers]))

    async def lose(self, *numbers):
        """Tell that partitions are another member's, and wait until the next item is asked for."""
        await self._put_and_wait(Lost([("t", number) for number in numbers]))

    async def _put_and_wait(self, item):
        done = asyncio.Event()
        self._items.put_nowait((item, done))
        await done.wait()

    def end(self):
        """End the source once everything was read."""
        self._items.put_nowait(None)

    # A source.

    def share(self):
        self.is_shared = True

    def place(self, partition, position):
        self.places.append((partition[1], position))
        self._at[partition] = 0 if position is None else position + 1
        self._tell()

    async def topic_of(self, partition):
        return "t", self._topic.count

    async def reassign(self, partition):
        if self._topic.owners.get(partition) is not self:
            return False
        self._at.pop(partition, None)
        self.paused.discard(partition)
        self._items.put_nowait(Assigned([partition]))
        return True

    def _tell(self):
        async def tell():
            async with self._topic.grown:
                self._topic.grown.notify_all()

        self._telling = asyncio.ensure_future(tell())

    async def __aiter__(self):
        while not self._stopped.is_set():
            if batch := self._next():
                yield batch
                continue
            if not self._items.empty():
                item = self._items.get_nowait()
                if item is None:
                    return
                item, done = item if isinstance(item, tuple) else (item, None)
                if not isinstance(item, Assigned):
                    for partition in item.partitions:
                        self._at.pop(partition, None)
                yield item
                if done is not None:
                    done.set()
                continue
            await asyncio.sleep(0.001)

    def _next(self):
        for partition, at in self._at.items():
            if partition in self.paused:
                continue
            if events := self._topic.events[partition][at : at + self._batch]:
                self._at[partition] = at + len(events)
                return [
                    Record(event, str(event["k"]).encode(), "t", partition, at + index)
                    for index, event in enumerate(events)
                ]
        return None

    async def commit(self, positions):
        self._topic.committed.update(positions)

    def pause(self, partitions):
        self.paused.update(partitions)

    def resume(self, partitions):
        self.paused.difference_update(partitions)

    def stop(self):
        self._stopped.set()

    async def close(self):
        self.is_closed = True


class Ledger:
    """A sink with a commit point for each shard.

    Attributes:
        shown: The results that were committed, by key.
        epochs: The last epoch of each name.
        opened: The shards that have a sink now.

    """

    name = "ledger"

    def __init__(self):
        self.shown = collections.defaultdict(list)
        self.epochs = {}
        self.writers = {}
        self.opened = []
        self._numbers = itertools.count()

    def for_shard(self, name):
        return _Page(self, name, next(self._numbers))

    async def write(self, results):
        raise AssertionError("each shard has a sink of its own")

    flush = write


class _Page:
    name = "ledger"

    def __init__(self, ledger, shard, number):
        self._ledger = ledger
        self._shard = shard
        self._number = number
        self._results = []
        ledger.opened.append(shard)

    async def begin(self, name, epoch):
        self._of = name
        self._ledger.writers[name] = self._number
        return self._ledger.epochs.setdefault(name, 0)

    async def write(self, results):
        self._results += results

    async def flush(self):
        pass

    async def commit(self, epoch, positions):
        if self._ledger.writers[self._of] != self._number:
            raise Superseded(f"another program has the sink of {self._shard}")
        for key, result in self._results:
            self._ledger.shown[key].append(result)
        self._results.clear()
        self._ledger.epochs[self._of] = epoch

    async def close(self):
        self._ledger.opened.remove(self._shard)
