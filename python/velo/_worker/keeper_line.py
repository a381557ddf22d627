"""A worker's line to the keeper of its supervisor's checkpoint."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import socket
from array import array
from collections.abc import Callable
from typing import Any

from velo._function import frames
from velo.errors import CheckpointError

__all__ = ["KeeperLine"]


class KeeperLine(asyncio.Protocol):
    """Asks the keeper, and hears its answers. See `velo/_checkpoint/keeper.py`.

    Attributes:
        settings: What the keeper has said first.

    """

    settings: dict[str, Any]

    def __init__(self, on_lost: Callable[[], object]) -> None:
        self._on_lost = on_lost
        self._transport: asyncio.Transport
        self._inbox = bytearray()
        self._numbers = itertools.count(1)
        self._welcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers: dict[int, asyncio.Future[Any]] = {0: self._welcome}
        self._lost = False

    @classmethod
    async def connect(cls, shared: int, on_lost: Callable[[], object]) -> KeeperLine:
        """Connect to the keeper.

        Args:
            shared: The socket that all workers have, through which it gets the ends of their lines.
            on_lost: Called when it is gone.

        Raises:
            CheckpointError: When it is gone already.
            OSError: When this process or the system has no room for a line.

        """
        here, there = socket.socketpair()
        try:
            with there, socket.socket(fileno=os.dup(shared)) as door:
                await _pass(door, there)
        except ConnectionError as error:
            here.close()
            raise _gone() from error
        except BaseException:
            here.close()
            raise
        # A process that a function forks is no part of the conversation.
        os.register_at_fork(after_in_child=functools.partial(_let_go, here))
        loop = asyncio.get_running_loop()
        _, line = await loop.create_unix_connection(lambda: cls(on_lost), sock=here)
        line.settings = await line._welcome
        return line

    @property
    def lost(self) -> bool:
        """Whether the keeper is gone."""
        return self._lost

    def ask(self, *what: Any) -> asyncio.Future[Any]:
        """Say something to the keeper, in the order of the calls, and return its answer.

        It is a `CheckpointError` when the keeper is gone.
        """
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        if self._lost:
            self._fail()
        else:
            self._transport.write(frames.pack((number, *what)))
        return answer

    def _fail(self) -> None:
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(_gone())
                answer.exception()  # whoever asked may not look

    # The transport.

    def connection_made(self, transport: Any) -> None:
        """Take the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Pass answers on."""
        self._inbox += data
        for number, answer in frames.unpack_all(self._inbox):
            asked = self._answers.pop(number, None)
            if asked is not None and not asked.done():
                asked.set_result(answer)

    def connection_lost(self, _error: Exception | None) -> None:
        """Fail what is asked."""
        self._lost = True
        self._fail()
        self._on_lost()


async def _pass(door: socket.socket, line: socket.socket) -> None:
    """Pass a line through a socket, once that has room."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [line.fileno()]))]
    while True:
        try:
            # Not `send_fds`: that of Python 3.11 ignores its flags.
            door.sendmsg([b"\0"], rights, socket.MSG_DONTWAIT)
            return
        except BlockingIOError:
            await _room(door)


async def _room(door: socket.socket) -> None:
    loop, room = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(door, room.set)
    try:
        await room.wait()
    finally:
        loop.remove_writer(door)


def _let_go(line: socket.socket) -> None:
    if line.fileno() >= 0:
        os.close(line.detach())


def _gone() -> CheckpointError:
    return CheckpointError("the supervisor that stores the state of this session has ended")
