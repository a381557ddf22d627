"""The keeper: a thread of a standalone supervisor that stores the states of sessions.

```
worker: snapshots ──put──> waiting ──commit──> disk ──answer──> worker
worker: attachment ──load──> waiting, or else disk ──answer──> worker
```

Workers reach it by socket pairs of their own, whose other ends they pass through one that all of
them have from their zygote. A worker that has loaded a session owns it, until it says that the
session has ended, or is dead: what others put is dropped. What was put counts for the next load at
once, and is answered when it is on the disk, or when that has failed: then the keeper tries again.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from velo._checkpoint.keys import unpack
from velo._checkpoint.session_folder import Change, Name, SessionFolder
from velo._diagnostics.failpoints import reached
from velo._environment import KEEPER_FD
from velo._function import frames
from velo._function.key_text import shown
from velo.errors import CheckpointError

__all__ = ["Keeper", "keeping"]

_PIECE = 1 << 18
# The most bytes that are received of one worker before others have their turn.
_MOST_AT_ONCE = 4 << 20


class Notes(Protocol):
    """Where it writes what an operator may want to know."""

    def tell_checkpoint(self, text: str) -> None:
        """Take the place of what the supervisor's status says of its checkpoint."""

    def log(self, failure: bool, text: str) -> None:
        """Write a line to the supervisor's log."""


@contextlib.contextmanager
def keeping(
    path: Path, *, every: float, ttl: float | None, trusted: bool, notes: Notes
) -> Iterator[tuple[str, str]]:
    """Keep the states of sessions in a folder.

    Yields:
        A variable for the environment of the zygote, by which its workers find the keeper.

    Raises:
        CheckpointError: When the folder cannot be used.

    """
    folder = SessionFolder(path, ttl)
    keeper = Keeper(folder, {"every": every, "trusted": trusted, "path": str(path)}, notes)
    try:
        yield KEEPER_FD, str(keeper.zygotes_end.fileno())
    finally:
        keeper.close()


class _Worker:
    """What the keeper knows of a worker."""

    def __init__(self, line: socket.socket) -> None:
        line.setblocking(False)
        self.socket = line
        credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid = int.from_bytes(credentials[:4], "little")
        # A process that a function has forked may have a copy of the line.
        self.process = os.pidfd_open(self.pid)
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.owns: set[Name] = set()

    @property
    def gone(self) -> bool:
        """Whether the keeper has let go of it."""
        return self.socket.fileno() < 0

    @property
    def dead(self) -> bool:
        """Whether its process has ended: then all that it has said is there."""
        ended = select.poll()
        ended.register(self.process, select.POLLIN)
        return bool(ended.poll(0))

    def close(self) -> None:
        """Let go of it."""
        self.socket.close()
        os.close(self.process)


class Keeper:
    """See the top of this file.

    Args:
        folder: Where it stores them; it closes it.
        settings: What workers are told first.
        notes: What it reports to.

    Attributes:
        zygotes_end: What the zygote is to inherit.

    """

    def __init__(self, folder: SessionFolder, settings: dict[str, Any], notes: Notes) -> None:
        self._folder = folder
        self._settings = settings
        self._notes = notes
        self._owners: dict[Name, _Worker] = {}
        # Changes that are not on the disk: those of the commit that is under way, and later ones.
        self._committing: dict[Name, Change] = {}
        self._waiting: dict[Name, Change] = {}
        self._since: float | None = None
        # Workers to answer when that commit is over, and when the next one is.
        self._asked: list[tuple[_Worker, int]] = []
        self._asks: list[tuple[_Worker, int]] = []
        self._commit: Future[None] | None = None
        self._retry = 0.0
        self._failure: str | None = None
        # Why nothing is stored any more.
        self._fault: str | None = None
        self._made: float | None = None
        self._closing = False
        self._said: set[str] = set()
        self._committer = ThreadPoolExecutor(1, "velo checkpoint")
        self._selector = selectors.DefaultSelector()
        self._mine, self.zygotes_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.zygotes_end.set_inheritable(True)
        self._mine.setblocking(False)
        self._alarm, self._ring = socket.socketpair()
        for end in (self._alarm, self._ring):
            end.setblocking(False)
        self._selector.register(self._mine, selectors.EVENT_READ, self._welcome)
        self._selector.register(self._alarm, selectors.EVENT_READ, self._on_alarm)
        self._tell()
        self._thread = threading.Thread(target=self._run, name="velo keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Store what dead workers have left, and close the folder. All workers have ended."""
        self._closing = True
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._ring.send(b"\0")

    def _on_alarm(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._alarm.recv(_PIECE)

    # The thread.

    def _run(self) -> None:
        try:
            while not self._closing:
                for key, _ in self._selector.select(self._pause()):
                    key.data()
                self._finish_commit()
                self._begin_commit()
            self._welcome()
            for worker in self._workers():
                self._receive(worker, catch_up=True)
        except Exception:
            self._fault = "it has failed: see the log"
            self._notes.log(True, f"the keeper has failed: {traceback.format_exc()}")
        finally:
            self._end()

    def _end(self) -> None:
        """Store what is there. Workers notice that the keeper has ended."""
        self._committer.shutdown()
        self._finish_commit()
        if self._waiting:
            try:
                self._folder.commit(self._waiting)
            except CheckpointError as error:
                count = len(self._waiting)
                self._notes.log(True, f"the states of {count:,} sessions are lost: {error}")
        self._tell()
        for worker in self._workers():
            self._drop(worker)
        self._folder.close()
        self._selector.close()
        for end in (self._mine, self.zygotes_end, self._alarm, self._ring):
            end.close()

    def _pause(self) -> float | None:
        if not self._waiting or self._commit is not None:
            return None
        return max(0.0, self._retry - time.monotonic())

    def _workers(self) -> list[_Worker]:
        known = self._selector.get_map().values()
        return list({id(one): one for key in known if (one := _worker_of(key.data))}.values())

    # Workers.

    def _welcome(self) -> None:
        """Take on the workers that have passed a line."""
        while True:
            try:
                _, fds, _, _ = socket.recv_fds(self._mine, 1, 1)
            except OSError:
                return  # BlockingIOError: there is none
            if not fds:
                return
            line = socket.socket(fileno=fds[0])
            try:
                worker = _Worker(line)
            except OSError:
                line.close()  # it is dead
                continue
            receive = _Call(self._receive, worker)
            self._selector.register(worker.socket, selectors.EVENT_READ, receive)
            self._selector.register(worker.process, selectors.EVENT_READ, receive)
            self._answer(worker, 0, self._settings)

    def _receive(self, worker: _Worker, *, catch_up: bool = False) -> None:
        """Obey what a worker says; let go of it if it is dead."""
        if worker.gone:
            return  # since this turn of the selector
        dead = worker.dead
        received = 0
        while dead or catch_up or received < _MOST_AT_ONCE:
            try:
                piece = worker.socket.recv(_PIECE)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            if not piece:
                dead = True
                break
            received += len(piece)
            worker.inbox += piece
            try:
                for message in frames.unpack_all(worker.inbox):
                    self._obey(worker, message)
            except (ValueError, TypeError, KeyError) as error:
                self._notes.log(True, f"worker process {worker.pid} is not understood: {error}")
                dead = True
                break
        if dead:
            self._drop(worker)
        elif worker.outbox:
            self._send(worker)

    def _drop(self, worker: _Worker) -> None:
        for name in worker.owns:
            self._owners.pop(name, None)
        worker.owns.clear()
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(worker.socket)
            self._selector.unregister(worker.process)
            worker.close()

    def _answer(self, worker: _Worker, number: int, answer: Any) -> None:
        worker.outbox += frames.pack((number, answer))
        self._send(worker)

    def _send(self, worker: _Worker) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # its death is noticed elsewhere
            while worker.outbox:
                sent = worker.socket.send(worker.outbox)
                del worker.outbox[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.outbox else 0)
        with contextlib.suppress(KeyError, ValueError):
            key = self._selector.get_key(worker.socket)
            if key.events != events:
                self._selector.modify(worker.socket, events, key.data)

    def _obey(self, worker: _Worker, message: Any) -> None:
        number, word, *rest = message
        if word == "load":
            function, key = rest
            self._answer(worker, number, self._load(worker, (function, key)))
        elif word == "put":
            (changes,) = rest
            for function, key, state, version in changes:
                self._put(worker, (function, key), Change(state, version))
            self._asks.append((worker, number))
        elif word == "end":
            function, key, *change = rest
            if change:
                self._put(worker, (function, key), Change(*change))
            if self._owners.get((function, key)) is worker:
                del self._owners[function, key]
                worker.owns.discard((function, key))
            self._answer(worker, number, None)
        else:
            raise ValueError(f"unknown word {word!r}")

    # Sessions.

    def _load(self, worker: _Worker, name: Name) -> tuple[bytes | None, int] | str | None:
        """Return the state of a session and its version, None, or the text of an error."""
        function, key = name
        owner = self._owners.get(name)
        if owner is not None and owner is not worker:
            self._receive(owner, catch_up=True)  # its end may have crossed with this
            owner = self._owners.get(name)
        if owner is not None:
            return (
                f"the key {shown(unpack(key))} of `{function}` has a session in worker process "
                f"{owner.pid}, of another version of the function: wait until that has ended"
            )
        change: Change | None
        try:
            if name in self._waiting or name in self._committing:
                change = self._waiting.get(name) or self._committing[name]
            else:
                self._say_if_new(function)
                change = self._folder.load(name)
        except CheckpointError as error:
            # The log of a supervisor names no keys.
            text = f"a state of `{function}` cannot be loaded: see `velo checkpoint verify`"
            self._notes.log(True, text)
            return str(error)
        self._owners[name] = worker
        worker.owns.add(name)
        return None if change is None or change.state is None else tuple(change)  # type: ignore[return-value]

    def _say_if_new(self, function: str) -> None:
        others = self._folder.functions
        if function in others or function in self._said:
            return
        self._said.add(function)
        more = f", beside those of {', '.join(f'`{one}`' for one in others[:5])}" if others else ""
        self._notes.log(
            False,
            f"states of `{function}` are kept from now on{more}; if it is one of those under a new "
            "name, stop this supervisor, and say so by `velo checkpoint rename`",
        )

    def _put(self, worker: _Worker, name: Name, change: Change) -> None:
        if self._owners.get(name) is worker:
            self._waiting[name] = change
            if self._since is None:
                self._since = time.time()

    def _begin_commit(self) -> None:
        if self._commit is not None:
            return
        if not self._waiting or time.monotonic() < self._retry:
            # The keeper has what they have put, and the next try stores it.
            asks, self._asks = self._asks, []
            for worker, number in asks:
                self._answer(worker, number, self._failure)
            return
        self._committing, self._waiting = self._waiting, {}
        self._asked, self._asks = self._asks, []
        self._commit = self._committer.submit(self._store, self._committing)
        self._commit.add_done_callback(lambda _: self._wake())
        self._tell()

    def _store(self, changes: dict[Name, Change]) -> None:
        reached("keeper", 1)
        self._folder.commit(changes)
        reached("keeper", 2)

    def _finish_commit(self) -> None:
        if self._commit is None or not self._commit.done():
            return
        error = self._commit.exception()
        self._commit = None
        if error is None:
            if self._failure is not None:
                self._notes.log(False, "states of sessions are stored again")
            self._failure, self._made, self._retry = None, time.time(), 0.0
            self._since = time.time() if self._waiting else None
        else:
            self._waiting = self._committing | self._waiting
            self._retry = time.monotonic() + self._settings["every"]
            if str(error) != self._failure:
                self._failure = str(error)
                text = f"the states of {len(self._waiting):,} sessions are not stored: {error}"
                self._notes.log(True, f"{text}; the next tick tries again")
        self._committing = {}
        asked, self._asked = self._asked, []
        for worker, number in asked:
            self._answer(worker, number, self._failure)
        self._tell()
        if error is None:
            reached("keeper", 3)

    def _tell(self) -> None:
        state = {
            "path": self._settings["path"],
            "every": self._settings["every"],
            "made": self._made,
            "unsaved": len(self._committing | self._waiting),
            "unsaved_since": self._since,
            "error": self._fault or self._failure,
        }
        self._notes.tell_checkpoint(json.dumps(state))


class _Call:
    """A call about a worker."""

    def __init__(self, call: Callable[[_Worker], None], worker: _Worker) -> None:
        self._call = call
        self.worker = worker

    def __call__(self) -> None:
        self._call(self.worker)


def _worker_of(call: Any) -> _Worker | None:
    return call.worker if isinstance(call, _Call) else None
