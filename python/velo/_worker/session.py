"""A session of a worker, and the attachments to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from velo import _core
from velo._function.session import Session
from velo._worker.client import Client
from velo._worker.kept_state import KeptState

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
        stored: How a checkpoint knows the session; empty for a function without a state.
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
        self.stored = request.stored
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
        waiting: Attachments that the supervisor has granted, but that this session is too late for,
            or that wait until its state is loaded.
        kept: Its state in the checkpoint of the supervisor; None where it is in none.
        loading: Whether its function has not begun yet.
        unload: Has it leave the memory, where its state is kept.

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
        self.kept: KeptState | None = None
        self.loading = False
        self.unload: Callable[[WorkerSession], None]

    def may_expire(self) -> bool:
        """Return whether it is detached."""
        return self.attachment is None and not self.loading

    def expire(self) -> None:
        """End the input of a detached session; where its state is kept, unload it."""
        if self.kept is None:
            return super().expire()
        self.on_attached()
        if not self.ending and self.may_expire():
            self.unload(self)
