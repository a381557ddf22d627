"""Pulling messages from one consumer of JetStream, in bounded requests."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from velo.connect._nats.link import Link

__all__ = ["Pull"]


class Pull:
    """Requests for messages of a consumer, one at a time.

    Attributes:
        messages: Those that came and were not taken.
        gone: Why the server says that there is no such consumer, or None.

    """

    def __init__(
        self, link: Link, stream: str, consumer: str, arrived: Callable[[Any], Awaitable[bool]]
    ) -> None:
        self.messages: deque[Any] = deque()
        self.gone: str | None = None
        self._link = link
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._arrived = arrived
        self._subscription: Any = None
        self._inbox = ""
        self._asked = 0
        self._ends_at = 0.0

    async def open(self) -> None:
        """Subscribe to the messages."""
        client = await self._link.client()
        self._inbox = client.new_inbox()
        self._subscription = await client.subscribe(self._inbox, cb=self._on_message)

    async def _on_message(self, message: Any) -> None:
        status = (message.headers or {}).get("Status")
        if status is None:
            self._asked -= 1
            if await self._arrived(message):
                self.messages.append(message)
        elif status != "100":
            self._asked = 0
            text = message.headers.get("Description", "")
            if status == "503" or (status == "409" and "onsumer" in text and "eleted" in text):
                self.gone = text or "there is no such consumer"
        self._link.wake.set()

    async def ask(self, count: int, seconds: float) -> None:
        """Ask for messages, unless the server is asked already; it ends the request in time.

        In no time, it gives what is there, and what other requests do not wait for.
        """
        if self._asked > 0 and time.monotonic() < self._ends_at:
            return
        self._asked = count
        # The reply to an older request may still come: the end of this one tells them apart.
        self._ends_at = time.monotonic() + seconds + 1.0
        ends = {"expires": int(seconds * 1e9)} if seconds else {"no_wait": True}
        request = {"batch": count, **ends}
        client = await self._link.client()
        await client.publish(self._subject, json.dumps(request).encode(), reply=self._inbox)

    def forget(self) -> None:
        """Ask anew: a request is lost with its connection."""
        self._asked = 0
        self.gone = None

    async def close(self) -> None:
        """Receive no more."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()
