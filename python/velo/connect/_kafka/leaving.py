"""How a member leaves its group before its consumer is closed."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import Consumer

__all__ = ["leave"]

_LEAVES = 2.0  # seconds for the client to take all partitions back
_ASKS = 0.5  # seconds for the client to ask the group to let it leave
_POLL = 0.01  # seconds between looks
_MOST = 10_000  # records that are thrown away between two looks


def leave(
    consumer: Consumer, has_partitions: Callable[[], bool], *, stays: bool, classic: bool
) -> None:
    """Give all partitions away, and have the client tell of that now instead of within `close`.

    librdkafka (2.16) may end the thread of its group before `close` has told of an assignment or a
    revocation. What its client for Python asks then is answered by no one: it waits for ever, and
    no other thread of the program runs, since it waits with the lock of the interpreter.

    Args:
        consumer: It is subscribed, and must be closed next.
        has_partitions: Whether the client has told of partitions and did not take them back yet.
        stays: Whether it stays a member of its group, as a static one that comes again.
        classic: Whether the group has the classic protocol.

    """
    if stays:
        consumer.consume(_MOST, 0)  # what waits to be told; more may come until it is closed
        return
    consumer.unsubscribe()
    # An assignment that came before waits to be told, and is taken back after that.
    consumer.consume(_MOST, 0)
    deadline = time.monotonic() + _LEAVES
    while has_partitions() and time.monotonic() < deadline:
        consumer.consume(_MOST, _POLL)
    # A client that is closed before it has asked to leave may end without that: the group would
    # wait for it until its session ends. It forgets its name when it asks; one that still joins
    # does so within `close`.
    deadline = time.monotonic() + _ASKS
    while classic and consumer.memberid() and time.monotonic() < deadline:
        consumer.consume(_MOST, _POLL)
