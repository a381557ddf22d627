"""One thread that reads from Kafka: every call of the consumer is made there."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message

from velo.connect._kafka.alone import Alone
from velo.connect._kafka.assignment import Assignment, places
from velo.connect._kafka.bound import Bound
from velo.connect._kafka.handover import Handover, Item
from velo.connect._kafka.link import ClientLog, Link, cause, transient
from velo.connect._kafka.lookout import Lookout
from velo.connect._kafka.places import Name
from velo.connect._kafka.reading import Reading
from velo.connect._kafka.records import records_of
from velo.connect._kafka.requests import Requests
from velo.connect.errors import ConnectError, PositionLost, Unreachable
from velo.connect.settings import log

__all__ = ["Reader"]

_WAIT = 0.1  # seconds: how long the thread waits for a record, and so for a request
_ALIVE = 0.5  # seconds between polls that keep a member alive which is not asked for records
_COUNT = 1.0  # seconds for the answer how many partitions a topic has

_UNKNOWN = KafkaError.UNKNOWN_TOPIC_OR_PART
_NO_GROUP = KafkaError.GROUP_AUTHORIZATION_FAILED


class Reader:
    """A consumer in a thread of its own, from its first item to `close`.

    The event loop takes items and asks for commits; the thread does what it is asked between two
    reads, and while it waits for the handling of partitions that it gives away.
    """

    def __init__(self, reading: Reading, link: Link) -> None:
        self._reading = reading
        self._link = link
        self._handover = Handover()
        self._requests = Requests(reading, link, self._handover)
        self._lookout = Lookout(reading, link, self._handover)
        self._consumer: Any = None
        self._assignment: Assignment | None = None
        self._bound: Bound | None = None
        self._alone: Alone | None = None
        self._asleep: set[Name] = set()  # partitions that are paused in the consumer too
        self._alive_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"velo {link.name}", daemon=True)
        self._thread.start()

    # For the event loop.

    @property
    def lag(self) -> dict[Name, int]:
        """How far each partition was not read, a moment ago."""
        return self._lookout.lag

    async def take(self) -> Item | None:
        """Give the next item; None at the end.

        Raises:
            ConnectError: When reading cannot go on.

        """
        return await self._handover.take()

    async def commit(self, offsets: dict[Name, int]) -> None:
        """Commit these offsets."""
        await self._handover.commit(offsets, self._closed())

    def pause(self, names: Iterable[Name]) -> None:
        """Hold back what is read of these."""
        self._handover.pause(names)

    def resume(self, names: Iterable[Name]) -> None:
        """Go on with these."""
        self._handover.resume(names)

    def place(self, name: Name, position: int | None) -> None:
        """Read a partition of the group from here on, behind this position."""
        self._handover.place(name, position)

    async def reassign(self, name: Name) -> bool:
        """Ask the group whether it still gives a partition; if so, give it once more."""
        is_given: bool = await self._handover.ask(lambda: self._give_again(name), False)
        return is_given

    async def count(self, topic: str) -> int:
        """Give how many partitions a topic has; 0: the brokers do not say."""
        count: int = await self._handover.ask(lambda: self._count(topic), 0)
        return count

    def stop(self) -> None:
        """Read no more; commits go on until `close`."""
        self._handover.stop()

    def abandon(self) -> None:
        """Let the thread close the consumer and end, without waiting for it."""
        self._handover.stop(closing=True)

    async def close(self) -> None:
        """Close the consumer, and wait for the thread to end."""
        self.abandon()
        try:
            async with asyncio.timeout(self._reading.close_timeout):
                await self._handover.wait_for_end()
        except TimeoutError:
            log.warning(
                "%s: the client does not close within %g s: no broker answers at %s",
                self._link.name,
                self._reading.close_timeout,
                self._link.servers,
            )
        else:
            self._thread.join()

    # The thread.

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            self._open()
            self._read()
        except KafkaException as error:
            failure = self._link.named(cause(error))
        except BaseException as error:
            failure = error
        if isinstance(failure, ConnectError):
            # The traceback of the one that is raised will hold the endpoint: see `Handover.take`.
            self._requests.failure = copy.copy(failure)
        self._handover.end(failure)
        del failure
        if self._assignment is not None and self._assignment.names:
            while not self._handover.closing:
                self._serve()
                self._handover.wait_for_request(_WAIT)
            self._serve()
        self._close()

    def _close(self) -> None:
        steps: list[Callable[[], None]] = []
        if self._assignment is not None:
            steps.append(self._assignment.leave)
        if self._alone is not None:
            steps.append(self._alone.close)
        if self._consumer is not None:
            steps.append(self._consumer.close)
        for step in steps:
            try:
                step()
            except Exception as error:  # the thread ends all the same
                log.warning("%s: the client was closed with an error: %s", self._link.name, error)
        self._alone = self._consumer = self._assignment = self._bound = None
        self._handover.end_thread(self._closed())

    def _closed(self) -> ConnectError:
        return Unreachable(f"{self._link.name}: closed before the commit was answered")

    def _open(self) -> None:
        reading = self._reading
        config = {**reading.config, "error_cb": self._link.on_error}
        try:
            self._consumer = Consumer(config, logger=ClientLog())
        except KafkaException as error:
            raise ValueError(f"{self._link.name}: {cause(error).str()}") from None
        known = self._lookout.partitions(
            lambda topic: self._link.metadata(
                self._consumer, topic, lambda: self._handover.stopping
            )
        )
        if reading.until is not None:
            self._bound = Bound(self._consumer, reading, self._link, known, self._ask)
        self._assignment = Assignment(
            self._consumer,
            reading,
            self._link,
            self._handover,
            known,
            self._ask,
            self._serve,
            self._on_begin,
        )
        if reading.by_hand:
            self._check_sought(known)
            if reading.group is not None:
                self._alone = Alone(reading, self._link.name, known)
            self._assignment.add_by_hand(known)
        else:
            self._assignment.subscribe()

    def _check_sought(self, known: Collection[Name]) -> None:
        sought, plain = self._reading.sought or {}, self._reading.plain
        mine = [name for name in sought if isinstance(name, tuple) and name[0] in plain]
        if gone := [name for name in mine if name not in known]:
            raise PositionLost(
                f"{self._link.name} at {self._link.servers}: the checkpoint has positions of "
                f"partitions that are not there: {', '.join(map(str, sorted(gone)))}. Their topic "
                "was made anew: begin with a new checkpoint"
            )

    def _ask(self, call: Callable[[], list[Any]]) -> list[Any]:
        return self._link.ask(call, lambda: self._handover.stopping)

    def _read(self) -> None:
        consumer, assignment, bound = self._consumer, self._assignment, self._bound
        handover, most = self._handover, self._reading.batch - 1
        assert assignment is not None
        while not handover.stopping:
            if bound is not None and bound.done(assignment, handover):
                return
            self._serve()
            if self._alone is not None:
                self._alone.look()
            self._requests.answer()
            assignment.place(handover.places())
            if not handover.has_room(_ALIVE):
                self._stay_alive()
                self._lookout.heard()
                continue
            message = consumer.poll(0.01 if self._asleep else _WAIT)
            self._link.check()
            if message is not None:
                self._lookout.heard()
                assignment.given.clear()
                messages = consumer.consume(most, 0)
                # A partition may be given away within `consume`, which leaves its records out; the
                # one before it would come after its revocation.
                if (message.topic(), message.partition()) not in assignment.given:
                    messages.insert(0, message)
                self._hand_on(messages)
                if self._link.down and message.error() is None:
                    self._link.answered()
            self._lookout.look(consumer, assignment, bound)

    def _stay_alive(self) -> None:
        """Tell the group that this member lives, while it is not asked for records."""
        if time.monotonic() >= self._alive_at:
            self._alive_at = time.monotonic() + _ALIVE
            if (message := self._consumer.poll(0)) is not None:
                self._hand_on([message])

    def _hand_on(self, messages: list[Message]) -> None:
        assert self._assignment is not None
        reading = self._reading
        records = records_of(
            messages, self._assignment.by_topic, reading.decode, reading.decode_key, self._on_error
        )
        if self._bound is not None:
            records = self._bound.cut(records)
        if records:
            self._handover.put_records(records)
        # The consumer throws away what it has fetched of a partition that is paused, so it is told
        # only when much of the partition is held already.
        if much := self._handover.held(more_than=2 * reading.batch) - self._asleep:
            self._consumer.pause(places(much))
            self._asleep |= much

    def _on_begin(self, name: Name) -> None:
        if self._bound is not None:
            self._bound.forget(name)

    def _on_error(self, message: Message) -> None:
        error: Any = message.error()
        if error.code() == KafkaError._PARTITION_EOF:
            if self._bound is not None:
                name: Any = (message.topic(), message.partition())
                self._bound.reach(name, message.offset() or 0)
        elif error.code() == KafkaError._MAX_POLL_EXCEEDED:
            log.warning("%s: the group has excluded this member: %s", self._link.name, error.str())
        elif error.code() == _NO_GROUP and self._reading.group is None:
            pass  # the client asks for the coordinator of a group also where there is none
        elif transient(error) or (error.code() == _UNKNOWN and self._reading.pattern):
            log.info("%s: %s", self._link.name, error.str())
        else:
            raise self._link.named(error, message.topic())

    # Requests.

    def _serve(self) -> None:
        assert self._assignment is not None
        if self._asleep and (awake := self._asleep - self._handover.paused()):
            self._consumer.resume(places(awake & self._assignment.names))
            self._asleep -= awake
        self._requests.commit(self._consumer, self._assignment)

    def _give_again(self, name: Name) -> bool | None:
        assert self._assignment is not None
        try:
            is_given = self._assignment.is_given(name)
        except KafkaException as error:
            if transient(cause(error)) or cause(error).code() == KafkaError.REBALANCE_IN_PROGRESS:
                return None
            raise
        if is_given:
            self._assignment.give_again(name)
        return is_given

    def _count(self, topic: str) -> int:
        return len(self._consumer.list_topics(topic, timeout=_COUNT).topics[topic].partitions)
