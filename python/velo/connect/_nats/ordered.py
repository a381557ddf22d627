"""An ordered consumer of a stream, which reads by sequence."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

import nats.js.api
import nats.js.errors

from velo.connect._nats.bounds import Bound, policy
from velo.connect._nats.consumer import Consumer, filters
from velo.connect._nats.link import Link
from velo.connect.errors import PositionLost
from velo.connect.settings import log

__all__ = ["Ordered"]


class Ordered(Consumer):
    """A consumer of this program alone, made again behind the last message when it is gone."""

    def __init__(
        self, link: Link, name: str, stream: str, subjects: Sequence[str], start: Any
    ) -> None:
        super().__init__(link, name, stream, subjects, start)
        self._consumer = ""
        self._last: int | None = None
        # The number of the next message of the present consumer: a gap is a lost message.
        self._number = 1
        self._broken = False
        self._whole = False

    async def begin(self, until: Any, stream: Any) -> None:
        """Find the place, and make the consumer; `stream` is what the server says of the stream."""
        self.bound = Bound(until, stream.state.last_seq)
        # Whether this reads all subjects of the stream, so that every gap is a deleted message.
        self._whole = set(stream.config.subjects or ()) <= set(self._subjects)
        begin = policy(self._start, self.stream)
        if begin["deliver_policy"] == "new":
            self._last = stream.state.last_seq
        elif begin["deliver_policy"] == "by_start_sequence":
            self._last = begin["opt_start_seq"] - 1
        await self._make()
        if self.lag == 0:
            self.bound.caught_up(time.time())

    async def _make(self) -> None:
        js = await self._link.jetstream()
        begin = policy(self._start, self.stream)
        if self._last is not None:
            begin = policy({self.stream: self._last}, self.stream)
            await self._check(self._last)
        self._consumer = f"velo-{os.urandom(8).hex()}"
        config = nats.js.api.ConsumerConfig(
            name=self._consumer,
            ack_policy=nats.js.api.AckPolicy.NONE,
            inactive_threshold=300.0,
            mem_storage=True,
            num_replicas=1,
            **filters(self._subjects),
            **begin,
        )
        info = await self._link.ask(lambda: js.add_consumer(self.stream, config))
        self.lag = info.num_pending or 0
        self._number = 1
        self._broken = False
        self._outages = self._link.outages.count
        kept = self._pull.messages if self._pull is not None else ()
        await self._open(self._consumer)
        assert self._pull is not None
        self._pull.messages.extend(kept)

    async def _check(self, last: int) -> None:
        """Raise where messages behind the position were deleted before they were read."""
        js = await self._link.jetstream()
        where = f"the position {last} of the stream `{self.stream}` on {self._link.address}"
        try:
            info = await self._link.ask(lambda: js.stream_info(self.stream))
        except nats.js.errors.NotFoundError as error:
            raise PositionLost(
                f"{where}: the stream was deleted, or the server came back without its data"
            ) from error
        if info.state.last_seq < last:
            raise PositionLost(
                f"{where} is behind its last message {info.state.last_seq}: the stream was made "
                "anew, or the server came back without its latest data. Choose where to begin "
                "with `start=`"
            )
        if info.state.first_seq > last + 1:
            raise PositionLost(
                f"messages behind {where} were deleted before they were read: its first message is "
                f"{info.state.first_seq}. Choose where to begin with `start=`, and keep messages "
                "for longer"
            )

    async def _arrived(self, message: Any) -> bool:
        data = message.metadata
        sequence = data.sequence.stream
        if data.consumer != self._consumer or self._broken:
            return False
        if data.sequence.consumer != self._number:
            self._broken = True
            return False
        self._number += 1
        self.lag = data.num_pending
        if not self.bound.holds(sequence, data.timestamp.timestamp(), data.num_pending):
            return False
        if self._whole and self._last is not None and sequence > self._last + 1:
            self._gap = self._last
        self._last = sequence
        return True

    _gap: int | None = None

    async def prepare(self) -> None:
        """Make the consumer again where it is gone."""
        if self._gap is not None:
            gap, self._gap = self._gap, None
            await self._check(gap)
        assert self._pull is not None
        if self._outages != self._link.outages.count or self._pull.gone or self._broken:
            log.debug("%s: makes its ordered consumer again", self._name)
            await self._make()

    async def tend(self) -> None:
        """See what is left, and whether the consumer is still there."""
        try:
            info = await self._info()
        except nats.js.errors.NotFoundError:
            self._broken = True
            self._link.wake.set()
            return
        self.lag = info.num_pending or 0
        if info.num_pending == 0:
            self.bound.caught_up(time.time())

    async def finished(self) -> bool:
        """Tell whether all messages up to the end were given."""
        if not self.waiting() and not self.bound.reached:
            await self.tend()
        return self.bound.reached and not self.waiting()

    async def commit(self, position: Any) -> None:
        """Do nothing: the caller keeps the positions."""

    async def end(self) -> None:
        """Delete the consumer."""
        if self._pull is None:
            return
        await self._pull.close()
        self._pull = None
        js = await self._link.jetstream()
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await js.delete_consumer(self.stream, self._consumer)
