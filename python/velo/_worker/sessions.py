"""The sessions of a worker, which outlive their attachments.

The supervisor says which client may attach. The worker says when an attachment has ended: the
function shows that, by asking for the event after the last one that was sent.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from collections.abc import Callable
from typing import Any

from velo import _core
from velo._function.context import stream_name
from velo._worker import introspection, logs
from velo._worker.client import Client, OpenStream
from velo._worker.detached import DetachedSessions
from velo._worker.keeping import Keeping
from velo._worker.kept_state import KeptState
from velo._worker.session import Attachment, WorkerSession
from velo.errors import CheckpointError

__all__ = ["Sessions"]


class Sessions:
    """All sessions of a worker.

    Args:
        control: The connection to the supervisor.
        function_of: Returns a client's function by its number, and whether it has a state.
        lines: Returns where the log records of all clients go.
        keeper: The socket that leads to the keeper of the supervisor's checkpoint, if there is one.

    """

    def __init__(
        self,
        control: _core.WorkerControl,
        function_of: Callable[[Client, int], tuple[Callable[..., Any], bool]],
        lines: Callable[[], list[logs.Line]],
        keeper: int | None,
    ) -> None:
        self._control = control
        self._function_of = function_of
        self._lines = lines
        self._sessions: dict[bytes, WorkerSession] = {}
        # By link and slot: the session that the stream there is attached to.
        self._attached: dict[tuple[int, int], WorkerSession] = {}
        self._detached = DetachedSessions()
        self._retiring = False
        self._keeping = None if keeper is None else Keeping(keeper, self._on_keeper_lost)
        self._loading: set[asyncio.Task[None]] = set()

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks of all functions."""
        return [one.task for one in self._sessions.values() if one.task is not None]

    # Orders of clients.

    def open(self, attachment: Attachment) -> None:
        """Attach a client's stream to its session, or begin that."""
        session = self._sessions.get(attachment.key)
        if session is None:
            loop = asyncio.get_running_loop()
            session = self._sessions[attachment.key] = WorkerSession(loop, attachment)
            if self._keeping is None or not attachment.stored:
                self._begin(session, attachment)
            else:
                self._load(session, attachment, self._keeping)
        elif session.attachment is None and not session.ending and not session.loading:
            self._attach(session, attachment)
        else:
            session.waiting.append(attachment)  # it has crossed with the end

    def detach(self, client: Client, place: tuple[int, int]) -> None:
        """Detach a client's stream, as soon as its events are handled."""
        session = self._attached.get((client.number, place[0]))
        attachment = None if session is None else session.attachment
        if session is not None and attachment is not None and attachment.place == place:
            client.link.detach(session.core, *place)
            return
        for session in self._sessions.values():
            for waiting in session.waiting:
                waiting.withdrawn |= waiting.client is client and waiting.place == place

    def leave(self, client: Client) -> None:
        """Detach all streams of a client that is gone."""
        for session in list(self._sessions.values()):
            for waiting in session.waiting:
                waiting.withdrawn |= waiting.client is client
            if session.attachment is not None and session.attachment.client is client:
                session.core.leave()

    # Orders of the supervisor.

    def release(self, key: bytes, grant: int) -> None:
        """Report when a granted attachment ends that its client has given up; at once if it has."""
        session = self._sessions.get(key)
        if session is None:
            self._control.key_free(key, grant, False)
        elif any(waiting.grant == grant for waiting in session.waiting):
            for waiting in session.waiting:
                waiting.withdrawn |= waiting.grant == grant
        elif session.attachment is not None:
            if session.grant == grant:
                session.core.leave()
        elif grant >= session.grant:
            session.grant = grant  # the report of its end is about this one
            self._control.key_free(key, grant, True)

    def retire(self) -> None:
        """End each session as soon as it is detached."""
        self._retiring = True
        for session in list(self._sessions.values()):
            session.expire()

    async def store(self) -> None:
        """Store all states: the functions are about to be cancelled."""
        if self._keeping is not None:
            await self._keeping.stop()

    def _on_keeper_lost(self) -> None:
        """End the sessions whose states are not stored any more: the supervisor has ended."""
        for session in list(self._sessions.values()):
            if session.kept is None or session.task is None:
                continue
            session.ending = True
            if session.attachment is None:
                session.task.cancel()
            else:
                # Its user is to know, and its function sees no end of its input.
                session.core.when_asking(_refuse)
                session.core.end_input()

    # Questions of `velo status`, `velo top` and `velo inspect`.

    def detached_since(self, number: int, longest: int) -> str:
        """List the detached sessions: see `DetachedSessions.since`."""
        return self._detached.since(number, longest)

    def find_detached(self, which: str) -> list[introspection.StreamInfo]:
        """Return the detached sessions under this key, with this name or at this place."""
        return [info for _, info in self._detached.find(which)]

    def end_detached(self, which: str) -> list[introspection.StreamInfo]:
        """End the input of detached sessions, as their timeout would, and return them."""
        ended = list(self._detached.find(which))
        for session, _ in ended:
            session.expire()
        return [info for _, info in ended]

    # The sessions themselves.

    def _load(self, session: WorkerSession, attachment: Attachment, keeping: Keeping) -> None:
        """Begin a session with the state that the checkpoint has."""
        session.kept, session.unload = KeptState(attachment.stored), keeping.unload
        session.loading = True
        session.waiting.append(attachment)

        task = asyncio.get_running_loop().create_task(keeping.load(session))
        self._loading.add(task)
        task.add_done_callback(functools.partial(self._on_loaded, session))

    def _on_loaded(self, session: WorkerSession, done: asyncio.Task[None]) -> None:
        self._loading.discard(done)
        if done.cancelled():
            return  # this worker ends
        done.result()
        (first, *others), session.waiting = session.waiting, []
        session.loading = False
        self._begin(session, first)
        self._open_all(others)

    def _begin(self, session: WorkerSession, attachment: Attachment) -> None:
        loop, kept = asyncio.get_running_loop(), session.kept
        self._enter(session, attachment)
        client, link = attachment.client, attachment.client.link
        on_free = functools.partial(self._on_free, session)
        values = None if kept is None else kept.values
        port, session.core = link.begin_session(loop, attachment.request, on_free, values)
        if self._keeping is not None:
            self._keeping.watch(session)

        def load() -> tuple[Callable[..., Any], bool]:
            session.function = self._function_of(client, attachment.function)
            if kept is not None:
                kept.restore()
            return session.function

        pump = port.load_and_start(load)
        if pump is None:
            return
        context = contextvars.copy_context()
        context.run(
            logs.line_of_stream.set, _LogTarget(session, attachment.client.line, self._lines)
        )
        context.run(stream_name.set, session.name)
        session.task = asyncio.Task(pump, loop=loop, name=session.name, context=context)
        self._show(session, attachment)
        port.attach(pump, session.task, context)
        if attachment.withdrawn and session.attachment is attachment:
            session.core.leave()

    def _enter(self, session: WorkerSession, attachment: Attachment) -> None:
        session.attachment, session.grant = attachment, attachment.grant
        self._attached[attachment.client.number, attachment.place[0]] = session

    def _show(self, session: WorkerSession, attachment: Attachment) -> None:
        """Show it among the streams of the client."""
        client, (slot, _) = attachment.client, attachment.place
        if session.task is not None:
            client.tasks[slot] = session.task
            client.opened[slot] = OpenStream(
                attachment.function, introspection.moment(), session.shown
            )

    def _attach(self, session: WorkerSession, attachment: Attachment) -> None:
        session.on_attached()
        self._detached.discard(session)
        # It is the same function: the client's need not be loaded for its name to be known.
        attachment.client.functions[attachment.function] = session.function
        self._enter(session, attachment)
        self._show(session, attachment)
        attachment.client.link.attach(session.core, attachment.request)
        if attachment.withdrawn and session.attachment is attachment:
            session.core.leave()

    def _on_free(
        self, session: WorkerSession, ended: bool, error: BaseException | None, failed: bool
    ) -> None:
        """Note the end of an attachment, or of the function; in the middle of its step."""
        attachment, session.attachment = session.attachment, None
        if attachment is not None:
            client, (slot, _) = attachment.client, attachment.place
            self._attached.pop((client.number, slot), None)
            client.tasks.pop(slot, None)
            client.opened.pop(slot, None)
        if ended:
            del self._sessions[session.key]
            self._detached.discard(session)
            session.on_ended(error)
            if session.kept is not None and self._keeping is not None:
                told = self._keeping.on_ended(session, failed)
                if told is not None:
                    # Another worker may load the state once the keeper knows its last one.
                    return told.add_done_callback(lambda _: self._free(session, ended))
        else:
            self._detached.add(session)
            if self._keeping is not None:
                self._keeping.hurry()
        self._free(session, ended)

    def _free(self, session: WorkerSession, ended: bool) -> None:
        """Have the next attachment come."""
        loop = asyncio.get_running_loop()
        self._control.key_free(session.key, session.grant, not ended)
        if session.waiting:
            waiting, session.waiting = session.waiting, []
            loop.call_soon(self._open_all, waiting)
        elif self._retiring and not ended:
            loop.call_soon(session.expire)
        elif not ended:
            session.on_detached()

    def _open_all(self, waiting: list[Attachment]) -> None:
        for attachment in waiting:
            self.open(attachment)


def _refuse() -> None:
    raise CheckpointError(
        "the supervisor that stores the state of this session has ended; open the key again: the "
        "next supervisor goes on from its last tick"
    )


class _LogTarget:
    """Takes what a session logs: for the client that is attached, or else for the last one."""

    def __init__(
        self, session: WorkerSession, line: logs.Line, lines: Callable[[], list[logs.Line]]
    ) -> None:
        self._session = session
        self._last = line
        self._lines = lines

    def _line(self) -> logs.Line:
        attachment = self._session.attachment
        if attachment is not None:
            self._last = attachment.client.line
        lines = self._lines()
        if self._last not in lines:
            # That event loop is gone; others of its program may be there.
            same = [line for line in lines if line.program == self._last.program]
            self._last = same[-1] if same else self._last
        return self._last

    @property
    def program(self) -> object:
        """The program whose records they are."""
        return self._line().program

    def handles(self, logger: str) -> bool:
        """Whether a logger has handlers there."""
        return self._line().handles(logger)

    def wants(self, record: logging.LogRecord) -> bool:
        """Whether it would handle a record."""
        return self._line().wants(record)

    def log(self, record: bytes) -> bool:
        """Send a log record; false when the client reads none."""
        return self._line().log(record)
