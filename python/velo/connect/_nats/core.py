"""Reading subjects of core NATS, which keeps and acknowledges nothing."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from velo.connect._nats.link import Link
from velo.connect._nats.messages import Layout
from velo.connect.model import Bad, Record
from velo.connect.settings import log

__all__ = ["Core"]


class Core:
    """Reads what is published while it is connected; each subject is a partition.

    Attributes:
        redelivered: Always 0.
        dropped: How many messages were dropped, because more than `buffer` waited.

    """

    redelivered = 0

    def __init__(
        self,
        link: Link,
        name: str,
        subjects: Sequence[str],
        layout: Layout,
        *,
        queue: str | None,
        until: Any,
        batch: int,
        buffer: int,
    ) -> None:
        self.dropped = 0
        self._link = link
        self._name = name
        self._subjects = subjects
        self._layout = layout
        self._queue = queue
        self._until = until
        self._batch = batch
        self._buffer = buffer
        self._waiting: dict[str, deque[Any]] = {subject: deque() for subject in subjects}
        self._positions = dict.fromkeys(subjects, 0)
        self._dropping = False
        self._subscriptions: list[Any] = []

    async def begin(self) -> list[str]:
        """Subscribe; give the subjects."""
        client = await self._link.client()
        for subject in self._subjects:

            async def arrived(message: Any, subject: str = subject) -> None:
                self._arrived(message, subject)

            self._subscriptions.append(
                await client.subscribe(subject, queue=self._queue or "", cb=arrived)
            )
        await self._link.ask(lambda: client.flush(5), 10.0)
        return list(self._subjects)

    def _arrived(self, message: Any, subject: str) -> None:
        waiting = self._waiting[subject]
        if len(waiting) < self._buffer:
            waiting.append(message)
            self._link.wake.set()
            return
        self.dropped += 1
        if not self._dropping:
            self._dropping = True
            log.warning(
                "%s: drops messages of `%s`: %d of them wait, and core NATS keeps none; `buffer=` "
                "is the limit, and a durable consumer of JetStream loses none",
                self._name, subject, len(waiting),
            )  # fmt: skip

    async def left(self) -> list[str]:
        """Give the subjects, until the end."""
        done = self._until == "end" or (self._until is not None and time.time() >= self._until)
        return [] if done else list(self._waiting)

    async def read(self, streams: Sequence[str], wait: float) -> list[Record | Bad]:
        """Give the next messages of one of the subjects; none when none comes in time."""
        self._link.check()
        self._link.wake.clear()
        if not any(self._waiting[subject] for subject in streams):
            try:
                async with asyncio.timeout(wait):
                    await self._link.wake.wait()
            except TimeoutError:
                return []
        for subject in streams:
            if waiting := self._waiting[subject]:
                self._waiting[subject] = self._waiting.pop(subject)  # another one's turn is next
                count = min(self._batch, len(waiting))
                return [self._record(waiting.popleft(), subject) for _ in range(count)]
        return []

    def _record(self, message: Any, subject: str) -> Record | Bad:
        if not self._waiting[subject]:
            self._dropping = False
        self._positions[subject] += 1
        return self._layout.record(message, subject, self._positions[subject], None)

    async def tend(self) -> None:
        """There is nothing to keep."""

    def lag(self) -> dict[Any, int]:
        """How many messages of each subject wait in this program."""
        return {subject: len(waiting) for subject, waiting in self._waiting.items()}

    async def commit(self, positions: Mapping[Any, Any]) -> None:
        """Do nothing: core NATS acknowledges nothing."""

    async def end(self) -> None:
        """Receive no more."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions.clear()
