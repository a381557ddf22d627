"""What the two kinds of consumers of a stream share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from velo.connect._nats.bounds import Bound
from velo.connect._nats.link import Link
from velo.connect._nats.pulling import Pull

__all__ = ["Consumer", "filters"]

# How long a request for messages stands on the server.
_PULL = 5.0


def filters(subjects: Sequence[str]) -> dict[str, Any]:
    if len(subjects) == 1:
        return {"filter_subject": subjects[0]}
    return {"filter_subjects": list(subjects)} if subjects else {}


class Consumer:
    """A consumer of one stream.

    Attributes:
        stream: The stream: the partition of its messages.
        bound: Where to end.
        lag: How many messages of the stream were not received.
        redelivered: How many messages had been delivered before.

    """

    def __init__(
        self, link: Link, name: str, stream: str, subjects: Sequence[str], start: Any
    ) -> None:
        self.stream = stream
        self.bound = Bound(None, 0)
        self.lag = 0
        self.redelivered = 0
        self._link = link
        self._name = name
        self._subjects = subjects
        self._start = start
        self._pull: Pull | None = None
        self._outages = link.outages.count

    def seek(self, position: int) -> None:
        """Begin behind this message."""
        self._start = {self.stream: position}

    def waiting(self) -> int:
        """Count the messages that came and were not taken."""
        return len(self._pull.messages) if self._pull else 0

    def take(self, count: int) -> list[Any]:
        """Take messages that came."""
        if self._pull is None:
            return []
        messages = self._pull.messages
        return [messages.popleft() for _ in range(min(count, len(messages)))]

    async def ask(self, count: int) -> None:
        """Ask the server for messages."""
        assert self._pull is not None
        await self._pull.ask(count, _PULL)

    async def _open(self, consumer: str) -> None:
        if self._pull is not None:
            await self._pull.close()
        self._pull = Pull(self._link, self.stream, consumer, self._arrived)
        await self._pull.open()

    async def _arrived(self, message: Any) -> bool:
        raise NotImplementedError

    async def _info(self) -> Any:
        js = await self._link.jetstream()
        return await self._link.ask(lambda: js.consumer_info(self.stream, self._consumer))

    _consumer: str
