"""A durable consumer of a stream, which keeps what is acknowledged."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import nats.js.api
import nats.js.errors

from velo.connect._nats.bounds import Bound, policy
from velo.connect._nats.consumer import Consumer, filters
from velo.connect._nats.link import REPLY, Link
from velo.connect.errors import ConnectError, PositionLost
from velo.connect.receipts import Receipts

__all__ = ["Durable"]

# How many acknowledgements go out before the server is asked whether it has them.
_ACKS = 1000
# Behind the end: how many seconds a message is put off at most, a second more each time; and how
# many seconds pass to the next request when nothing came again.
_PUT_OFF = 30
_PAUSE = 1.0


class Durable(Consumer):
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
        # Messages behind the end, by their sequence: the subject of the acknowledgement, and until
        # when the server gives it to nobody; or, where they are kept, since when it waits.
        self._put_off: dict[int, tuple[str, float]] = {}
        self._kept: dict[int, list[Any]] = {}
        self._keeps = False
        # Of those up to the end, how many came again in a row; and from when on to ask for more.
        self._again = 0
        self._ask_at = 0.0

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
                **filters(self._subjects),
                **policy(self._start, self.stream),
            )
            info = await self._link.ask(lambda: js.add_consumer(self.stream, config))
        self._check(info.config, stream.config.subjects or ())
        self._ack_wait = info.config.ack_wait or self._ack_wait
        # A message that the server delivers so many times only must not come again and again.
        self._keeps = (info.config.max_deliver or 0) > 0
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
        now = [message.reply, time.monotonic()]
        if data.num_delivered > 1:
            self._ask_at = 0.0  # there may be more: these come ahead of new ones
        if (token := self._receipts.of(self.stream).get(sequence)) is not None:
            token[:] = now  # this program works on it
            return False
        if not self.bound.holds(sequence, data.timestamp.timestamp(), data.num_pending):
            await self._leave(message)
            return False
        self.redelivered += data.num_delivered > 1
        self._again = self._again + 1 if data.num_delivered > 1 else 0
        self._receipts.add(self.stream, sequence, now)
        return True

    async def _leave(self, message: Any) -> None:
        """Leave a message behind the end to others, or to the next run."""
        data, now = message.metadata, time.monotonic()
        self._again = 0
        if self._keeps:
            self._kept[data.sequence.stream] = [message.reply, now]
            return
        # Not at once: the server would send it to this program again, ahead of others.
        delay = min(data.num_delivered, _PUT_OFF)
        self._put_off[data.sequence.stream] = (message.reply, now + delay)
        answer = json.dumps({"delay": delay * 10**9})
        await (await self._link.client()).publish(message.reply, f"-NAK {answer}".encode())

    def _held(self) -> dict[int, str]:
        """Give what the server waits for this program with: subjects by sequence."""
        now = time.monotonic()
        self._put_off = {each: item for each, item in self._put_off.items() if item[1] > now}
        tokens = {**self._receipts.of(self.stream), **self._kept, **self._put_off}
        return {sequence: token[0] for sequence, token in tokens.items()}

    async def ask(self, count: int) -> None:
        """Ask the server for messages; behind the end for those that others may give back.

        What comes behind the end is for others to get. So this asks for what they leave lying, and
        for one message, or for more while such come as are to be given.
        """
        if not self.bound.reached:
            await super().ask(count)
        elif self._others > 0 and (now := time.monotonic()) >= self._ask_at:
            assert self._pull is not None
            self._ask_at = now + _PAUSE
            await self._pull.ask(min(count, self._others, self._again + 1), 0)

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
        for token in (*self._receipts.of(self.stream).values(), *self._kept.values()):
            if now - token[1] > self._ack_wait / 2:
                token[1] = now
                await client.publish(token[0], b"+WPI")
        held = self._held()
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
        if info.ack_floor is not None and info.ack_floor.stream_seq >= self.bound.last:
            self._others = 0  # what is not acknowledged lies behind the end
        else:
            # What came or went in the meantime is in this count or not.
            self._others = (info.num_ack_pending or 0) - len(held.keys() & self._held().keys())

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
        if not (held := self._held()):
            return
        # The server drops the request that stands when it is asked about its consumer. While one
        # stands, it tries the first message with it, in vain, and puts that behind the others.
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await self._info()
        client = await self._link.client()
        for reply in held.values():
            await client.publish(reply, b"-NAK")
        await client.flush(1)
