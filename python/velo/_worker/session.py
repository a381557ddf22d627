"""A session of a worker, and the attachments to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from velo import _core
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
        request: The request, as the link takes it.
        withdrawn: Whether the client has let go of it before it was attached.

    """

    def __init__(
        self,
        client: Client,
        request: _core.SessionRequest,
    ) -> None:
        self.client = client
        self.request = request
        self.key = request.key
        self.grant = request.grant
        self.timeout = request.timeout
        self.shown = request.shown
        self.place = (request.slot, request.stream)
        self.function = request.function
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
        self.name = first.request.name
        self.began = time.monotonic_ns()
        self.detachment = self.detached_at = 0
        self.grant = 0
        self.task: asyncio.Task[None] | None = None
        self.attachment: Attachment | None = None
        self.waiting: list[Attachment] = []

    def may_expire(self) -> bool:
        """Return whether it is detached."""
        return self.attachment is None
