"""A run that shares its source with other programs: partitions move between them with their state.

```
              ┌──> shard: driver, ticks ──> checkpoint/payments-0, sink
source ──> group run
   ^          └──> shard: driver, ticks ──> checkpoint/payments-3, sink
   └── commit <── positions <──┘
```

A partition that the group gives begins a shard, which opens the partition's checkpoint and reads
on from there. One that goes ends its shard, before another program gets it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from velo._api.driver import Closable
from velo._api.patience import closed, waiting_for
from velo._api.shard import Shard, ShardSinks, Work, name_of_shard
from velo._api.shard_source import ShardSource
from velo._api.terms import Figures
from velo._diagnostics import source_figures
from velo.connect.errors import ConnectError
from velo.connect.model import Assigned, Lost, Revoked, record_key, record_of

if TYPE_CHECKING:
    from velo._api.gates import Flow
    from velo._api.terms import Checkpointing, Terms
    from velo._checkpoint.checkpoint import Checkpoint
    from velo._function.spec import FunctionSpec
    from velo.connect.model import Batch, Sink

__all__ = ["GroupRun"]

_log = logging.getLogger("velo.connect")

# A shard that other programs have taken over is begun again so often while the group gives it to
# this one. Two groups with one checkpoint would take over from each other for ever.
_MOST_AGAIN = 3


class GroupRun:
    """Runs a function over the partitions that a group gives, each as a shard.

    Attributes:
        figures: What all shards have done; `epoch` and `tick_seconds` are those of the last tick.
        source: The source.
        name: The function.

    Args:
        spec: The function.
        source: The source, whose `shares` is true.
        key: As for `Driver`.
        terms: How it deals with what fails.
        kept: The settings of its checkpoints.
        sink: The sink.
        opened: Opens the checkpoint of a shard.
        is_keyed: Whether a state is that of a key, and not that of a partition.

    Raises:
        TypeError: When `sink` is no sink.
        ValueError: When the sink cannot take the results of shards, or the source cannot be shared.

    """

    def __init__(
        self,
        spec: FunctionSpec,
        source: Any,
        key: Any,
        terms: Terms,
        kept: Checkpointing,
        sink: Sink,
        opened: Callable[[str], contextlib.AbstractAsyncContextManager[Checkpoint]],
        *,
        is_keyed: bool,
    ) -> None:
        self.figures = Figures()
        self.source = source
        self.name = spec.name
        self._work = Work(
            spec,
            key,
            terms,
            every=kept.every,
            unloads=kept.keys == "unload",
            sinks=ShardSinks(sink),
            opened=opened,
            figures=self.figures,
            is_keyed=is_keyed,
        )
        self._shards: dict[Hashable, Shard] = {}
        # Shards that were dropped and have not ended. An opening cannot be interrupted, and takes
        # as long as the store does: only the next shard of the partition waits for it.
        self._leaving: dict[Hashable, asyncio.Task[None]] = {}
        # How often each shard was begun again.
        self._again: collections.Counter[Hashable] = collections.Counter()
        self._tasks: asyncio.TaskGroup
        self._stopping = self._reads = False
        # Handled, and stored in the checkpoints; not committed yet.
        self._positions: dict[Hashable, Any] = {}
        self._committing = asyncio.Lock()

    @property
    def is_reading(self) -> bool:
        """Whether the group is asked for partitions, and those are read."""
        return self._reads

    def flows(self) -> dict[Hashable, Flow]:
        """Give how the records of each partition go that this program has."""
        return {p: flow for shard in self._shards.values() for p, flow in shard.flows().items()}

    def stop(self) -> None:
        """Read no more: what was read is handled and stored, and then the run ends."""
        self._stopping = True
        self.source.stop()

    async def run(self) -> None:
        """Run until the source ends, or `stop` is called.

        Raises:
            Exception: The first one of a shard or of the source. It ends the other shards, which
                leave their last ticks as they are.

        """
        source_figures.note(self)
        try:
            self.source.share()
            self._warn_of_keys()
            try:
                async with asyncio.TaskGroup() as self._tasks:
                    commits = self._tasks.create_task(self._commit_now_and_then())
                    await self._read()
                    await self._end()
                    commits.cancel()
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            await self._commit()
        finally:
            self._reads = False
            source_figures.forget(self)
            await closed(self.source)

    def _warn_of_keys(self) -> None:
        if self._work.is_keyed and self._work.key is not record_key:
            _log.warning(
                "%s: the state of a key is that of its partition: all records of a key have to be "
                "in one partition of %s, as they are where the key is the record's own "
                "(`connect.record_key`, `--record-key`)",
                self.name,
                source_figures.name_of(self.source),
            )

    async def _read(self) -> None:
        self._reads = not self._stopping
        if self._stopping:
            return
        async with contextlib.aclosing(Closable(self.source)) as items:
            async for item in items:
                if isinstance(item, Assigned):
                    for partition in item.partitions:
                        self._begin(partition)
                elif isinstance(item, Revoked):
                    await self._give_away(item.partitions)
                elif isinstance(item, Lost):
                    self._drop(item.partitions)
                else:
                    self._hand_on(item)
                if self._stopping:
                    break
        self._reads = False

    def _hand_on(self, items: Batch) -> None:
        for partition, some in itertools.groupby(items, lambda item: record_of(item).partition):
            if (shard := self._shards.get(partition)) is not None:
                shard.put(list(some))

    async def _end(self) -> None:
        """Let the shards come to their ends."""
        shards = list(self._shards.values())
        for shard in shards:
            if self._stopping:
                shard.stop()
            else:
                shard.end()
        if shards:
            await asyncio.wait([shard.task for shard in shards])

    # Partitions that come and go.

    def _begin(self, partition: Hashable) -> None:
        if (before := self._shards.get(partition)) is not None:  # it has asked for that
            _log.warning(
                "%s: the group gives the shard %s to this program, which takes it over again from "
                "one that was late",
                *(self.name, before.name),
            )
            self._leave(partition, before)
        source = ShardSource(self.source, partition, self._note)
        shard = self._shards[partition] = Shard(self._work, source, partition, self._reassign)
        shard.task = self._tasks.create_task(
            shard.run(self._leaving.get(partition)), name=f"{self.name} {shard.name}"
        )
        _log.info("%s: takes the shard %s", self.name, shard.name)

    async def _reassign(self, partition: Hashable) -> bool:
        """Have the group give a shard once more that another program has taken over."""
        reassign = getattr(self.source, "reassign", None)
        if reassign is None or self._again[partition] >= _MOST_AGAIN:
            return False
        self._again[partition] += 1
        name = name_of_shard(partition)
        try:
            with waiting_for("`reassign`", self.source):
                is_given: bool = await reassign(partition)
        except ConnectError as error:
            _log.info(
                "%s: the group does not say whose the shard %s is: %s", self.name, name, error
            )
            return False
        return is_given

    async def _give_away(self, partitions: Iterable[Hashable]) -> None:
        """Have shards finished that the next program gets once the next item is asked for."""
        going = self._gone(partitions)
        await asyncio.gather(*(shard.give_away() for shard in going.values()))
        await self._commit()
        _log.info("%s: gives away %s", self.name, [shard.name for shard in going.values()])

    def _drop(self, partitions: Iterable[Hashable]) -> None:
        """Drop shards that another program has already."""
        going = self._gone(partitions)
        for partition in partitions:
            self._positions.pop(partition, None)
        for partition, shard in going.items():
            self._leave(partition, shard)
        if going:
            names = ", ".join(shard.name for shard in going.values())
            _log.warning("%s: lost %s; records in hand are dropped", self.name, names)

    def _leave(self, partition: Hashable, shard: Shard) -> None:
        """Drop a shard, and have the next one of its partition wait for its end."""

        def ended(task: asyncio.Task[None]) -> None:
            if self._leaving.get(partition) is task:
                del self._leaving[partition]

        self._leaving[partition] = shard.task
        shard.task.add_done_callback(ended)
        shard.drop()

    def _gone(self, partitions: Iterable[Hashable]) -> dict[Hashable, Shard]:
        found = {}
        for partition in partitions:
            self._again.pop(partition, None)
            if (shard := self._shards.pop(partition, None)) is not None:
                found[partition] = shard
        return found

    # Positions, for those who look at the lag: shards have their own in their checkpoints.

    def _note(self, positions: Mapping[Hashable, Any]) -> None:
        self._positions.update(positions)

    async def _commit_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._work.terms.commit_every)
            await self._commit()

    async def _commit(self) -> None:
        async with self._committing:
            positions, self._positions = self._positions, {}
            if positions:
                with waiting_for("`commit`", self.source):
                    await self.source.commit(positions)
