"""A source that is read in a task, step by step where a test wants it."""

import asyncio
import contextlib

from helpers import until
from velo.connect.model import Assigned, Bad, Lost, Revoked

__all__ = ["Member"]


class Member:
    """Reads a source all the time, and commits what a test tells it to.

    `on_revoked` is an async function of the partitions, called before the next item is asked for.
    """

    def __init__(self, source, on_revoked=None):
        self.source = source
        self.records, self.events = [], []
        self.partitions = set()
        self.failure = None
        self._on_revoked = on_revoked
        self._task = asyncio.create_task(self._read())

    @property
    def values(self):
        return [record.value for record in self.records]

    @property
    def ended(self):
        return self._task.done()

    async def _read(self):
        try:
            async for item in self.source:
                if isinstance(item, Assigned):
                    self.partitions.update(item.partitions)
                elif isinstance(item, Revoked) and self._on_revoked is not None:
                    await self._on_revoked(item.partitions)
                if isinstance(item, Revoked | Lost):
                    self.partitions.difference_update(item.partitions)
                if isinstance(item, Assigned | Revoked | Lost):
                    self.events.append(item)
                else:
                    self.records.extend(r.record if isinstance(r, Bad) else r for r in item)
        except Exception as error:
            self.failure = error

    async def until(self, condition):
        """Wait for a condition; what ends the source ends the wait."""

        def met():
            if self.failure is not None:
                raise self.failure
            return condition()

        await until(met, describe=lambda: f"{len(self.records)} records, {self.events}")

    async def read(self, count):
        """Wait for so many records."""
        await self.until(lambda: len(self.records) >= count)

    async def commit(self):
        """Commit all that was read."""
        await self.source.commit({r.partition: r.position for r in self.records})

    async def close(self):
        """End the source, as a program does."""
        self.source.stop()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self.source.close()
