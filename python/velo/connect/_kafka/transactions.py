"""Results to Kafka that show when they are committed, together with the epoch of a checkpoint.

The epoch is an offset of a group of its own, which is committed in the same transaction as the
results. So the brokers alone say which epoch is the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from velo.connect._kafka.link import ClientLog, Link, cause, transient
from velo.connect._kafka.writer import Messages, Writer, Writing
from velo.connect.errors import ConnectError, PositionLost, Unreachable

__all__ = ["Transactions"]

_TRY = 1.0  # seconds for one attempt of a call
_AGAIN = 0.1  # seconds until the next one
_BEGIN = 60.0  # seconds until a coordinator that does not answer at the start is an error

_EPOCH = "epoch="

# librdkafka (2.16) drops its brokers when all of them are away, or when one is missing in the
# metadata, and may then wait for one of these for ever, because it still counts as the coordinator
# of the group. So none is dropped when all are away, and what it knows of coordinators lasts for a
# few seconds only.
_LASTING = {
    "metadata.recovery.strategy": "none",
    "topic.metadata.refresh.interval.ms": 3_000,
    "metadata.max.age.ms": 10_000,
}
_TIMEOUT = "transaction.timeout.ms"


class Transactions(Writer):
    """A transactional producer, with the group that has its epochs.

    Args:
        writing: How to write.
        link: What the client hears of its brokers.
        name: The name of the checkpoint. Its transactions and its group are called `velo-NAME`.

    """

    def __init__(self, writing: Writing, link: Link, name: str) -> None:
        config = {_TIMEOUT: 60_000, **writing.config, **_LASTING}
        config["transactional.id"] = f"velo-{name}"
        super().__init__(replace(writing, config=config), link)
        self._group = f"velo-{name}"
        self._limit = int(config[_TIMEOUT]) / 1000
        self._member: Any = None
        self._is_open = False
        self._ended: ConnectError | None = None
        self._is_stuck = False

    async def begin(self, epoch: int) -> int:
        """Abort what an earlier program has left open, shut it out, and give the last epoch.

        Raises:
            PositionLost: When the brokers have forgotten the epoch of the checkpoint.
            Unreachable: When there is no answer in time.

        """
        last: int = await self._within(2 * _BEGIN, self._begin, epoch)
        return last

    async def commit(self, epoch: int) -> None:
        """Show the results since the last commit, and keep the epoch.

        Raises:
            Superseded: When another program has begun under the same name.
            Unreachable: When there is no answer in the time that a transaction may take.

        """
        await self._within(self._limit, self._commit, epoch)

    async def _within(self, seconds: float, call: Callable[[int], Any], epoch: int) -> Any:
        try:
            async with asyncio.timeout(seconds):
                return await self._in_thread(call, epoch)
        except TimeoutError:
            self._is_stuck = self._closing = True
            raise Unreachable(
                f"{self._link.name}: no answer of the brokers at {self._link.servers} to a "
                f"transaction within {seconds:g} s (`{_TIMEOUT}`). Whether its results show is "
                "found out at the next start"
            ) from None

    async def close(self) -> None:
        """Close the producer; what was not committed does not show."""
        if not self._is_stuck:
            await super().close()

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Make a call in a thread that holds up no end of the program: it may never return."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def tell(result: Any, error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        def run() -> None:
            result, failure = None, None
            try:
                result = call(*arguments)
            except BaseException as error:
                failure = error
            if self._is_stuck:
                self._close()  # late, as no task waits for it
                return
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, result, failure)

        threading.Thread(target=run, name=f"velo {self._link.name}", daemon=True).start()
        return await done

    # In the thread.

    def _begin(self, epoch: int) -> int:
        self._open()
        deadline = time.monotonic() + _BEGIN
        self._ask(
            lambda: self._producer.init_transactions(_TRY), deadline, "transaction coordinator"
        )
        config = {n: v for n, v in self._writing.config.items() if n != "transactional.id"}
        config |= {"group.id": self._group, "enable.auto.commit": False}
        consumer: Any = Consumer(config, logger=ClientLog())
        try:
            places = self._ask(
                lambda: consumer.committed([self._place()], timeout=_TRY),
                deadline,
                f"coordinator of the group `{self._group}`",
            )
            self._member = consumer.consumer_group_metadata()
        finally:
            consumer.close()  # many sinks in one program would have as many clients
        last = self._epoch_of(places[0])
        if last is not None:
            return last
        if epoch:
            raise PositionLost(
                f"{self._link.name} at {self._link.servers}: the checkpoint has written {epoch} "
                f"ticks of results, and the group `{self._group}`, which knows the last one that "
                "was committed, is not there: its offsets have expired "
                "(`offsets.retention.minutes`), or this is another cluster. Begin with a new "
                "checkpoint"
            )
        # From now on, a group that is not there has expired.
        self._commit(0)
        return 0

    def _place(self, epoch: int | None = None) -> TopicPartition:
        topic = self._writing.topic
        if epoch is None:
            return TopicPartition(topic, 0)
        return TopicPartition(topic, 0, epoch, metadata=f"{_EPOCH}{epoch}")

    def _epoch_of(self, place: TopicPartition) -> int | None:
        if place.error is not None:
            raise self._link.named(place.error, place.topic)
        if place.offset < 0:
            return None
        name, _, number = (place.metadata or "").partition("=")
        if name + "=" != _EPOCH or not number.isdigit():
            raise ConnectError(
                f"{self._link.name} at {self._link.servers}: the offset of the group "
                f"`{self._group}` was not stored by a checkpoint: something else commits for it"
            )
        return int(number)

    def _produce(self, messages: Messages, begin: int) -> int:
        self._begin_transaction()
        return super()._produce(messages, begin)

    def _begin_transaction(self) -> None:
        if self._ended is not None:
            raise self._ended  # what was written before it is lost
        if not self._is_open:
            try:
                self._producer.begin_transaction()
            except KafkaException as error:
                raise self._named(cause(error)) from None
            self._is_open = True

    def _commit(self, epoch: int) -> None:
        self._begin_transaction()
        member, place = self._member, self._place(epoch)
        self._ask(lambda: self._producer.send_offsets_to_transaction([place], member, _TRY))
        self._ask(lambda: self._producer.commit_transaction(_TRY))
        self._is_open = False
        self._link.answered()

    def _ask(self, call: Callable[[], Any], deadline: float | None = None, of: str = "") -> Any:
        """Make a call, again while brokers are away; `of` is what answers it.

        Raises:
            Superseded: When another program has taken over.
            Unreachable: When there is no answer until the deadline.
            ConnectError: When the brokers refuse.

        """
        while not self._closing:
            try:
                return call()
            except KafkaException as error:
                why = cause(error)
            if why.txn_requires_abort():
                raise self._aborted(why)
            if not transient(why) or why.fatal():
                raise self._named(why)
            if deadline is not None and time.monotonic() > deadline:
                raise Unreachable(
                    f"{self._link.name}: the {of} at {self._link.servers} does not answer within "
                    f"{_BEGIN:g} s: {why.str()}"
                )
            time.sleep(_AGAIN)
        raise Unreachable(f"{self._link.name}: closed before the transaction was committed")

    def _reason(self, error: KafkaError) -> ConnectError | None:
        if self._is_open and self._ended is None:
            try:
                # Within a transaction it is refused: with the error of that, where it has one.
                self._producer.begin_transaction()
            except KafkaException as refusal:
                why = cause(refusal)
                if why.fatal():
                    return self._named(why)
                if why.txn_requires_abort():
                    return self._aborted(why)
        return self._ended or super()._reason(error)

    def _aborted(self, why: KafkaError) -> ConnectError:
        """Abort a transaction that can only be aborted, and give the reason.

        The client itself may know no more than that brokers did not answer in time, as behind a
        halt of the program. Whether another one has taken over meanwhile, their answer tells.
        """
        try:
            self._producer.abort_transaction(_TRY)
            self._is_open = False
        except KafkaException as error:
            if cause(error).fatal():
                why = cause(error)
        self._ended = self._named(why)
        return self._ended

    def _named(self, error: KafkaError) -> ConnectError:
        return self._link.named(error, self._writing.topic, "the transaction was not committed")

    def _close(self) -> None:
        if self._is_open:
            self._producer.purge()
            try:
                self._producer.abort_transaction(self._writing.close_timeout)
            except KafkaException:
                # The next program of this name aborts it. To close the client would try it again.
                self._producer = None
        if self._producer is not None:
            super()._close()
