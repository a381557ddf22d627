"""Two kinds of consumers of a stream: durable, with acknowledgements, and ordered, by sequence."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import nats.js.api
import nats.js.errors

from velo.connect._nats.bounds import Bound, policy
from velo.connect._nats.link import REPLY, Link
from velo.connect._nats.pulling import Pull
from velo.connect.errors import ConnectError, PositionLost
from velo.connect.receipts import Receipts
from velo.connect.settings import log

__all__ = ["Durable", "Ordered"]

# How many acknowledgements go out before the server is asked whether it has them.
_ACKS = 1000

# How long a request for messages stands on the server.
_PULL = 5.0


def _filters(subjects: Sequence[str]) -> dict[str, Any]:
    if len(subjects) == 1:
        return {"filter_subject": subjects[0]}
    return {"filter_subjects": list(subjects)} if subjects else {}


class _Consumer:
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


class Durable(_Consumer):
    """A consumer that the server keeps, with what it has acknowledged."""

    def __init__(
        self,
        link: Link,
        name: str,
        stream: str,
        subjects: Sequence[str],
        start: Any,
        *,
        durable: str,
        rewind: bool,
        ack_wait: float,
        max_ack_pending: int,
        limit: float,
    ) -> None:
        super().__init__(link, name, stream, subjects, start)
        self._consumer = durable
        self._rewind = rewind
        self._ack_wait = ack_wait
        self._max_ack_pending = max_ack_pending
        self._limit = limit
        # Of each message, the subject of its acknowledgement, and since when the server waits.
        self._receipts: Receipts[list[Any]] = Receipts()

    async def begin(self, until: Any, stream: Any) -> None:
        """Find the consumer, or make it; `stream` is what the server says of the stream."""
        js = await self._link.jetstream()
        self.bound = Bound(until, stream.state.last_seq)
        if self._rewind:
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await self._link.ask(lambda: js.delete_consumer(self.stream, self._consumer))
        try:
            info = await self._info()
        except nats.js.errors.NotFoundError:
            config = nats.js.api.ConsumerConfig(
                durable_name=self._consumer,
                ack_policy=nats.js.api.AckPolicy.EXPLICIT,
                ack_wait=self._ack_wait,
                max_ack_pending=self._max_ack_pending,
                **_filters(self._subjects),
                **policy(self._start, self.stream),
            )
            info = await self._link.ask(lambda: js.add_consumer(self.stream, config))
        self._check(info.config, stream.config.subjects or ())
        self._ack_wait = info.config.ack_wait or self._ack_wait
        self.lag = info.num_pending or 0
        if self.lag == 0:
            self.bound.caught_up(time.time())
        await self._open(self._consumer)

    def _check(self, config: Any, all_subjects: Sequence[str]) -> None:
        """Refuse a consumer that reads something else, or in another way."""
        name = f"the durable consumer `{self._consumer}` of the stream `{self.stream}`"
        if config.deliver_subject is not None or config.ack_policy != "explicit":
            raise ConnectError(
                f"{name} is no pull consumer with explicit acknowledgement: choose another name"
            )
        has = {config.filter_subject, *(config.filter_subjects or ())} - {None, ""}
        if (has or set(all_subjects)) != set(self._subjects):
            raise ConnectError(
                f"{name} reads {', '.join(sorted(has)) or 'all subjects'}, not "
                f"{', '.join(self._subjects)}: choose another name, or begin anew with "
                f"`nats consumer rm {self.stream} {self._consumer}`"
            )

    async def _arrived(self, message: Any) -> bool:
        data = message.metadata
        sequence = data.sequence.stream
        self.lag = data.num_pending
        if (token := self._receipts.of(self.stream).get(sequence)) is not None:
            token[:] = [message.reply, time.monotonic()]  # this program works on it
            return False
        if not self.bound.holds(sequence, data.timestamp.timestamp(), data.num_pending):
            # It goes to the next run, a little later: this one may still wait for others.
            delay = json.dumps({"delay": int(0.5e9)}).encode()
            await (await self._link.client()).publish(message.reply, b"-NAK " + delay)
            return False
        self.redelivered += data.num_delivered > 1
        self._receipts.add(self.stream, sequence, [message.reply, time.monotonic()])
        return True

    async def prepare(self) -> None:
        """Ask anew after an outage; raise where the server has no such consumer any more."""
        assert self._pull is not None
        if self._outages != self._link.outages.count:
            self._outages = self._link.outages.count
            self._pull.forget()
        if self._pull.gone is not None:
            self._pull.forget()
            await self.tend()

    async def tend(self) -> None:
        """Tell the server that this program works on its messages; see what is left."""
        now = time.monotonic()
        client = await self._link.client()
        for token in list(self._receipts.of(self.stream).values()):
            if now - token[1] > self._ack_wait / 2:
                token[1] = now
                await client.publish(token[0], b"+WPI")
        try:
            info = await self._info()
        except nats.js.errors.NotFoundError as error:
            raise PositionLost(
                f"{self._name}: the durable consumer `{self._consumer}` of the stream "
                f"`{self.stream}` is not there any more on {self._link.address}: it or the stream "
                "was deleted, or the server came back without its data. Start again: the consumer "
                "is made anew at `start=`"
            ) from error
        self.lag = info.num_pending or 0
        if info.num_pending == 0:
            self.bound.caught_up(time.time())
        self._others = (info.num_ack_pending or 0) - len(self._receipts)

    _others = 0

    async def finished(self) -> bool:
        """Tell whether all messages up to the end were given, or acknowledged by others."""
        if not self.waiting():
            await self.tend()
        return not self.waiting() and self.bound.reached and self._others <= 0

    async def commit(self, position: Any) -> None:
        """Acknowledge all messages that came up to this one, and see that the server has it."""
        tokens = self._receipts.up_to(self.stream, position)
        sequences = list(tokens)
        for start in range(0, len(sequences), _ACKS):
            chunk = sequences[start : start + _ACKS]
            await self._acknowledge([tokens[sequence] for sequence in chunk])
            self._receipts.remove(self.stream, chunk)

    async def _acknowledge(self, tokens: list[list[Any]]) -> None:
        began = time.monotonic()
        while True:
            client = await self._link.ready(self._limit)
            outages = self._link.outages.count
            for token in tokens[:-1]:
                await client.publish(token[0], b"+ACK")
            left = max(0.1, self._limit - (time.monotonic() - began))
            await self._link.ask(partial(client.request, tokens[-1][0], b"+ACK", REPLY), left)
            if outages == self._link.outages.count:
                return  # on one connection: those before the last one are there too

    async def end(self) -> None:
        """Give back what was not acknowledged, for others to get at once."""
        if self._pull is not None:
            await self._pull.close()
            self._pull = None
        if not len(self._receipts):
            return
        # The server drops the request that stands when it is asked about its consumer. While one
        # stands, it tries the first message with it, in vain, and puts that behind the others.
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await self._info()
        client = await self._link.client()
        for reply, _ in self._receipts.of(self.stream).values():
            await client.publish(reply, b"-NAK")
        await client.flush(1)


class Ordered(_Consumer):
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
            **_filters(self._subjects),
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
