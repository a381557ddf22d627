"""Items from the thread that reads to the event loop that handles them, and requests back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from velo.connect._kafka.places import Name
from velo.connect.model import Assigned, Bad, Lost, Record, Revoked, record_of

__all__ = ["Commit", "Handover", "Item", "Question"]

Records = list[Record | Bad]
Item = Records | Assigned | Revoked | Lost

_AHEAD = 4  # batches that wait to be asked for


@dataclass
class Commit:
    """A request of the loop: the offsets to commit, behind the last handled records."""

    offsets: dict[Name, int]
    done: asyncio.Future[None]
    not_before: float = 0.0


@dataclass
class Question:
    """A call that the thread makes for the loop; see `Handover.ask`."""

    call: Callable[[], Any]
    otherwise: Any
    done: asyncio.Future[Any]


class Handover:
    """What a thread and the event loop share, under one lock.

    Records of a paused partition are held here until it is resumed.

    Attributes:
        stopping: Whether no more items are wanted.
        closing: Whether no more commits are wanted either.

    """

    def __init__(self) -> None:
        self.stopping = self.closing = False
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._ready: deque[Item] = deque()
        self._batches = 0
        self._asked: asyncio.Future[None] | None = None
        self._commits: deque[Commit] = deque()
        self._paused: set[Name] = set()
        self._held: dict[Name, Records] = {}
        self._places: dict[Name, int | None] = {}
        self._questions: list[Question] = []
        self._revoked = 0  # revocations behind which the next item was not asked for yet
        self._taken_revoked = False
        self._ended = False
        self._failure: BaseException | None = None
        self._gone: asyncio.Future[None] = self._loop.create_future()

    # For the event loop.

    async def take(self) -> Item | None:
        """Give the next item; None at the end. Raises what has ended the thread."""
        with self._changed:
            if self._taken_revoked:
                self._taken_revoked = False
                self._revoked -= 1
                self._changed.notify_all()
        while True:
            with self._changed:
                if self.stopping:
                    return None
                if self._ready:
                    item = self._ready.popleft()
                    self._batches -= isinstance(item, list)
                    self._taken_revoked = isinstance(item, Revoked)
                    self._changed.notify_all()
                    return item
                if (failure := self._failure) is not None:
                    # Its traceback will hold the endpoint, which the thread must not keep alive.
                    self._failure = None
                    raise failure
                if self._ended:
                    return None
                asked = self._asked = self._loop.create_future()
            await asked

    async def commit(self, offsets: dict[Name, int], closed: BaseException) -> None:
        """Have the thread commit these; raises `closed` where it has ended."""
        commit = Commit(offsets, self._loop.create_future())
        with self._changed:
            if self._gone.done() or self.closing:
                raise closed
            self._commits.append(commit)
            self._changed.notify_all()
        await commit.done

    def pause(self, names: Iterable[Name]) -> None:
        """Hold back what is read of these."""
        with self._changed:
            self._paused.update(names)

    def resume(self, names: Iterable[Name]) -> None:
        """Hand on what was held back of these."""
        with self._changed:
            for name in names:
                self._paused.discard(name)
                if held := self._held.pop(name, None):
                    self._append(held)
            self._changed.notify_all()

    def place(self, name: Name, position: int | None) -> None:
        """Have a partition read behind a position; None: where its group or `start` says."""
        with self._changed:
            self._places[name] = position
            self._changed.notify_all()

    async def ask(self, call: Callable[[], Any], otherwise: Any) -> Any:
        """Have the thread make a call between two reads.

        Args:
            call: Gives the answer; None: ask again soon.
            otherwise: The answer where the thread reads no more.

        """
        with self._changed:
            if self.stopping or self._ended:
                return otherwise
            question = Question(call, otherwise, self._loop.create_future())
            self._questions.append(question)
            self._changed.notify_all()
        return await question.done

    def stop(self, closing: bool = False) -> None:
        """Ask the thread to read no more, and to end when `closing`."""
        with self._changed:
            self.stopping = True
            self.closing = self.closing or closing
            self._wake()
            self._changed.notify_all()

    async def wait_for_end(self) -> None:
        """Wait for `end_thread`."""
        await asyncio.shield(self._gone)

    # For the thread: items.

    def put(self, item: Item) -> None:
        """Hand an item on; after `Revoked`, see `wait_for_handling`."""
        with self._changed:
            self._revoked += isinstance(item, Revoked)
            self._append(item)

    def put_records(self, records: Records) -> None:
        """Hand records on, without those of paused partitions."""
        with self._changed:
            if self._paused:
                records = self._hold(records)
            if records:
                self._append(records)

    def has_room(self, seconds: float) -> bool:
        """Say whether more may be read; waits for that, or for a request."""
        with self._changed:
            if self._batches >= _AHEAD:
                self._changed.wait(seconds)
            return self._batches < _AHEAD

    def handled(self, seconds: float) -> bool:
        """Say whether all that was handed on before `Revoked` is handled; waits for that a bit."""
        with self._changed:
            if self._revoked and not self.stopping and not self._is_due():
                self._changed.wait(seconds)
            return not self._revoked or self.stopping

    def end(self, failure: BaseException | None) -> None:
        """Hand on nothing more."""
        with self._changed:
            self._ended, self._failure = True, failure
            questions, self._questions = self._questions, []
            self._wake()
        for question in questions:
            self.tell(question, question.otherwise)

    # For the thread: paused partitions.

    def held(self, more_than: int = 0) -> set[Name]:
        """Give the partitions of which more records than this are held."""
        with self._changed:
            return {name for name, records in self._held.items() if len(records) > more_than}

    def paused(self) -> set[Name]:
        """Give the paused partitions."""
        with self._changed:
            return set(self._paused)

    def forget(self, names: Iterable[Name]) -> None:
        """Drop what is held and asked of partitions that come, or are another member's now."""
        with self._changed:
            for name in names:
                self._paused.discard(name)
                self._held.pop(name, None)
                self._places.pop(name, None)

    def places(self) -> dict[Name, int | None]:
        """Give the partitions that are to be read from now on, and behind which positions."""
        with self._changed:
            found, self._places = self._places, {}
            return found

    def questions(self) -> list[Question]:
        """Give the calls that the loop waits for."""
        with self._changed:
            found, self._questions = self._questions, []
            return found

    def ask_again(self, question: Question) -> None:
        """Put a call back."""
        with self._changed:
            self._questions.append(question)

    def tell(self, question: Question, answer: Any) -> None:
        """Give the loop the answer that it waits for."""

        def tell() -> None:
            if not question.done.done():
                question.done.set_result(answer)

        self._in_loop(tell)

    # For the thread: commits.

    def next_commit(self) -> Commit | None:
        """Give the oldest commit whose time has come."""
        with self._changed:
            return self._commits.popleft() if self._is_due() else None

    def retry(self, commit: Commit, seconds: float) -> None:
        """Put a commit back, for later."""
        commit.not_before = time.monotonic() + seconds
        with self._changed:
            self._commits.appendleft(commit)

    def answer(self, commit: Commit, error: BaseException | None = None) -> None:
        """Tell the loop that offsets are committed, or why they are not."""

        def tell() -> None:
            if commit.done.done():
                return
            if error is None:
                commit.done.set_result(None)
            else:
                commit.done.set_exception(error)

        self._in_loop(tell)

    def wait_for_request(self, seconds: float) -> None:
        """Wait for a commit or the end; for some seconds where a commit is to be tried again."""
        with self._changed:
            if not self.closing and not self._is_due():
                self._changed.wait(seconds if self._commits else None)

    def end_thread(self, closed: BaseException) -> None:
        """Note that the thread is about to end."""
        with self._changed:
            self.closing = True
            commits, self._commits = list(self._commits), deque()
        for commit in commits:
            self.answer(commit, closed)
        self._in_loop(lambda: _set(self._gone))

    # With the lock held.

    def _is_due(self) -> bool:
        return bool(self._commits) and self._commits[0].not_before <= time.monotonic()

    def _append(self, item: Item) -> None:
        self._ready.append(item)
        self._batches += isinstance(item, list)
        self._wake()

    def _wake(self) -> None:
        if (asked := self._asked) is not None:
            self._asked = None
            self._in_loop(lambda: _set(asked))

    def _hold(self, records: Records) -> Records:
        others = []
        for item in records:
            name: Any = record_of(item).partition
            if name in self._paused:
                self._held.setdefault(name, []).append(item)
            else:
                others.append(item)
        return others

    def _in_loop(self, call: Callable[[], None]) -> None:
        # In a loop that is closed, no task waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
