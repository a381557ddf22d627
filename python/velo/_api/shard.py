"""A shard: one partition with its keys, its checkpoint, and its sink."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Any

from velo._api.driver import Driver
from velo._api.patience import closed
from velo._api.shard_source import ShardSource
from velo._api.sink_calls import SinkCalls
from velo._api.ticks import Ticks
from velo._api.topics import Topics
from velo.connect.errors import Superseded
from velo.connect.model import Revoked

if TYPE_CHECKING:
    from velo._api.gates import Flow
    from velo._api.terms import Figures, Terms
    from velo._checkpoint.checkpoint import Checkpoint
    from velo._function.spec import FunctionSpec
    from velo.connect.model import Batch, Sink

__all__ = ["Shard", "ShardSinks", "Work", "name_of_shard"]

_log = logging.getLogger("velo.connect")

# A member that stood still may hear from its checkpoint that a shard has moved, before it hears so
# from its group: for that it has so many seconds.
_GRACE = 30.0


def name_of_shard(partition: Hashable) -> str:
    """Name a shard in a form for paths: topic and number, `payments-3`."""
    parts = partition if isinstance(partition, tuple) else (partition,)
    return "-".join(map(str, parts))


class ShardSinks:
    """Gives each shard its sink.

    Args:
        sink: The sink of the run.

    Raises:
        TypeError: When it is no sink.
        ValueError: When it cannot be shared by shards that move.

    """

    def __init__(self, sink: Sink) -> None:
        calls = SinkCalls(sink, "the sink")
        self._new: Callable[[str], Sink] | None = getattr(sink, "for_shard", None)
        if self._new is None and (calls.takes_back or calls.commits):
            raise ValueError(
                f"{calls.name} cannot take the results of a group: it takes back what was written "
                "behind a mark, and so would drop results of other members. Write to Kafka or "
                "PostgreSQL, which have the results of each partition once; or to a sink without "
                "`mark`, which has some again after a crash"
            )
        self._shared = calls

    @contextlib.asynccontextmanager
    async def of(self, shard: str) -> Any:
        """Give the calls of a shard's sink, and close that where it is the shard's own."""
        if self._new is None:
            yield self._shared
            return
        sink = self._new(shard)
        try:
            yield SinkCalls(sink, "the sink")
        finally:
            await closed(sink)


class Work:
    """What the shards of a run have in common.

    Attributes:
        spec: The function.
        key: As for `Driver`.
        terms: How drivers deal with what fails.
        every: Seconds between two ticks.
        unloads: As for `Driver`.
        sinks: Gives each shard its sink.
        opened: Opens the checkpoint of a shard.
        figures: What all shards have done.
        is_keyed: Whether a state is that of a key, and not that of a partition.
        topics: How many partitions topics have.

    """

    def __init__(
        self,
        spec: FunctionSpec,
        key: Any,
        terms: Terms,
        *,
        every: float,
        unloads: bool,
        sinks: ShardSinks,
        opened: Callable[[str], contextlib.AbstractAsyncContextManager[Checkpoint]],
        figures: Figures,
        is_keyed: bool,
    ) -> None:
        self.spec = spec
        self.key = key
        self.terms = terms
        self.every = every
        self.unloads = unloads
        self.sinks = sinks
        self.opened = opened
        self.figures = figures
        self.is_keyed = is_keyed
        self.topics = Topics(spec.name)


class Shard:
    """A run of its own, over one partition, until that goes.

    Attributes:
        name: Its name.
        task: What runs it.

    Args:
        work: What it has in common with other shards.
        source: The partition.
        partition: Its name in the whole source.
        reassign: Has the group give the partition once more, if it is still this program's; says
            whether it is.

    """

    task: asyncio.Task[None]

    def __init__(
        self,
        work: Work,
        source: ShardSource,
        partition: Hashable,
        reassign: Callable[[Hashable], Awaitable[bool]],
    ) -> None:
        self.name = name_of_shard(partition)
        self._work = work
        self._source = source
        self._partition = partition
        self._driver: Driver | None = None
        self._reassign = reassign
        self._is_dropped = self._is_over = False
        # Nothing is heard of the group any more.
        self._hears_nothing = asyncio.Event()

    async def run(self, before: asyncio.Task[None] | None) -> None:
        """Run until the partition ends, or goes; the last cancels this.

        Where another program has taken over the checkpoint, and the group says that the partition
        is still this one's, that program was late: it had lost the partition before its claim. Then
        this returns, and the group gives the partition once more.

        Args:
            before: The shard of the partition that was dropped before. It has the checkpoint and
                the sink until it ends, so that this one neither begins nor ends earlier.

        Raises:
            Superseded: When another program goes on with the checkpoint, and the group, which is
                still heard, neither confirms the partition nor gives it away soon.
            Exception: As of `Driver.batches`.

        """
        if before is not None:
            try:
                await asyncio.wait([before])
            except asyncio.CancelledError:
                await asyncio.wait([before])
                raise
        try:
            await self._run()
        except Superseded as error:
            if self._is_dropped:
                return
            _log.warning("%s: %s", self.name, error)
            if not await self._is_settled():
                raise
        except Exception as error:
            if not self._is_dropped:
                raise
            # It stores nothing any more, so nothing is lost with what fails now.
            _log.info("%s: dropped with an error: %r", self.name, error)

    async def _is_settled(self) -> bool:
        """Whether the partition comes once more, or it cannot be told that it has moved."""
        asking = [
            asyncio.ensure_future(self._reassign(self._partition)),
            asyncio.ensure_future(self._hears_nothing.wait()),
        ]
        try:
            for answered in asyncio.as_completed(asking, timeout=_GRACE):
                if await answered:
                    return True
        except TimeoutError:
            pass
        finally:
            for task in asking:
                task.cancel()
        return False

    async def _run(self) -> None:
        work, source = self._work, self._source
        try:
            async with contextlib.AsyncExitStack() as closing:
                store = await closing.enter_async_context(work.opened(self.name))
                if work.is_keyed and (topic := await source.topic()) is not None:
                    work.topics.look(*topic, store.note_partitions(topic[1]))
                sink = await closing.enter_async_context(work.sinks.of(self.name))
                terms = work.terms
                ticks = Ticks(store, source, sink, work.every, terms.dead_letter)
                driver = self._driver = Driver(
                    work.spec.apart(),
                    source,
                    work.key,
                    terms,
                    sink.flush,
                    ticks=ticks,
                    unloads=work.unloads,
                    figures=work.figures,
                )
                async with contextlib.aclosing(driver.batches()) as batches:
                    async for batch in batches:
                        async with ticks.naming_who_took_over():
                            await sink.write_each(batch, driver.refused)
        finally:
            self._is_over, self._driver = True, None
            source.given_away.set()

    def flows(self) -> dict[Hashable, Flow]:
        """Give how the records of the partition go."""
        return {} if self._driver is None else self._driver.flows()

    def put(self, records: Batch) -> None:
        """Give it records. Those that come behind its end are left to the next one."""
        if not self._is_over:
            self._source.put(records)

    def end(self) -> None:
        """Tell that no more records come."""
        self._hears_nothing.set()
        self._source.end()

    def stop(self) -> None:
        """Read no more: what was read is handled, and then it ends."""
        self._hears_nothing.set()
        if self._driver is None:
            self.task.cancel()
        else:
            self._driver.stop()

    async def give_away(self) -> None:
        """Handle what was read, store it, and let go of checkpoint and sink."""
        if self._source.is_read:
            self._source.put(Revoked((self._partition,)))
            await self._source.given_away.wait()
        self.drop()
        await asyncio.wait([self.task])

    def drop(self) -> None:
        """Let go of everything at once; `task` ends when that is done."""
        self._is_dropped = True
        self.task.cancel()
