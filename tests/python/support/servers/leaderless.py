"""A broker of Kafka without a leader for the first results that it is sent."""

import asyncio
import contextlib
import struct

__all__ = ["Leaderless"]

_PRODUCE, _VERSION = 0, 10
_NOT_LEADER = 6
# Whoever waits for an answer sends nothing more meanwhile: this is the time that it is given to.
_WATCHES = 0.5


class Leaderless:
    """Stands between clients and a broker, and refuses the first request that has results.

    It does so when the next one has come, which goes on to the broker; or else after a moment.

    Attributes:
        address: Its address.
        asked: Set when the first request has come.

    Args:
        port: The port of the broker.
        topic: Where results go: it has one partition.

    """

    def __init__(self, port, topic):
        self.asked = asyncio.Event()
        self._broker = port
        self._topic = topic.encode()
        self._refusal = self._timer = None
        self._pumps, self._open = set(), set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        if self._timer is not None:
            self._timer.cancel()
        for stream in self._open:
            stream.close()
        await asyncio.gather(*self._pumps)

    async def _serve(self, requests, answers):
        self._pumps.add(asyncio.current_task())
        found, broker = await asyncio.open_connection("127.0.0.1", self._broker)
        self._open |= {answers, broker}
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                await asyncio.gather(
                    self._ask(requests, broker, answers), self._answer(found, answers)
                )
            finally:  # ends the other one
                answers.close()
                broker.close()

    async def _ask(self, requests, broker, answers):
        while True:
            frame = await _frame(requests)
            kind, version, number = struct.unpack_from(">hhi", frame)
            if kind == _PRODUCE and not self.asked.is_set():
                assert version == _VERSION, f"`_refused` is for another version than {version}"
                self._refusal = answers, self._refused(number)
                self._timer = asyncio.get_running_loop().call_later(_WATCHES, self._refuse)
                self.asked.set()
                continue
            if kind == _PRODUCE:
                self._refuse()
            broker.write(_framed(frame))

    async def _answer(self, found, answers):
        # Clients go where the answers say that the broker is.
        real, own = (b"127.0.0.1" + struct.pack(">i", port) for port in (self._broker, self._port))
        while True:
            frame = await _frame(found)
            answers.write(_framed(frame.replace(real, own)))

    def _refuse(self):
        if self._refusal is not None:
            (answers, refusal), self._refusal = self._refusal, None
            answers.write(_framed(refusal))

    def _refused(self, number):
        """The answer to a request with results: this broker is not the leader of partition 0."""
        topic = struct.pack(">bb", 2, len(self._topic) + 1) + self._topic
        partition = struct.pack(">bihqqqbbb", 2, 0, _NOT_LEADER, -1, -1, -1, 1, 0, 0)
        return struct.pack(">ib", number, 0) + topic + partition + struct.pack(">bib", 0, 0, 0)


async def _frame(stream):
    (size,) = struct.unpack(">i", await stream.readexactly(4))
    return await stream.readexactly(size)


def _framed(frame):
    return struct.pack(">i", len(frame)) + frame
