"""A session of a worker, and the attachments to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from velo._function.session import Session
from velo._worker.client import Client

__all__ = ["Attachment", "WorkerSession"]


class Attachment:
    """A client's stream that is, or is to be, attached to a session.

    Attributes:
        key: The digest of the session's key.
        grant: Which of the key's grants it has.
        timeout: How many seconds the session may be detached. None: any time.
        shown: The key, as `velo status` shows it.
        place: The slot, and the stream in it.
        function: The number of the function, among those of the client.
        withdrawn: Whether the client has let go of it before it was attached.

    """

    def __init__(
        self,
        client: Client,
        session: tuple[bytes, int, float | None, str],
        place: tuple[int, int],
        function: int,
        limits: tuple[int, int, bool, bool, bool],
        terms: tuple[tuple[float | None, float | None], str],
    ) -> None:
        self.client = client
        self.key, self.grant, self.timeout, self.shown = session
        self.place = place
        self.function = function
        self.limits = limits
        self.terms = terms
        self.withdrawn = False


class WorkerSession(Session):
    """The session of one key.

    Attributes:
        name: The name of the stream that has begun it.
        began: When that was, in nanoseconds of the monotonic clock.
        detachment: The number of the last time that it was detached; 0 before the first one.
        detached_at: When that was.
        grant: Which of the key's grants the supervisor knows it by.
        function: The function, and whether it has a state.
        task: What runs the function.
        attachment: The attachment that it has.
        waiting: Attachments that the supervisor has granted, but that this session is too late for.

    """

    function: tuple[Callable[..., Any], bool]

    def __init__(self, loop: asyncio.AbstractEventLoop, first: Attachment) -> None:
        super().__init__(loop, first.timeout)
        self.key = first.key
        self.shown = first.shown
        _, self.name = first.terms
        self.began = time.monotonic_ns()
        self.detachment = self.detached_at = 0
        self.grant = 0
        self.task: asyncio.Task[None] | None = None
        self.attachment: Attachment | None = None
        self.waiting: list[Attachment] = []

    def may_expire(self) -> bool:
        """Return whether it is detached."""
        return self.attachment is None
