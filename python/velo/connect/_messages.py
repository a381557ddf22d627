"""The messages of a WebSocket that a server has accepted, as a source and as a sink."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from velo.connect.errors import Disconnected
from velo.connect.formats import Decode, Encode, decoder
from velo.connect.model import Batch, Partition, Position, addressed
from velo.connect.settings import decoded
from velo.connect.web import Interrupted, Interrupts, framed

__all__ = ["Messages", "messages"]

_PARTITION = "messages"


def messages(
    websocket: Any,
    *,
    decode: Decode = "json",
    encode: Encode = "json",
    binary: bool | None = None,
) -> Messages:
    """Read the messages of an open WebSocket, and send results to it.

    ```python
    @app.websocket("/chat")
    async def chat(websocket: WebSocket):
        await websocket.accept()
        messages = connect.messages(websocket)
        await reply.over(messages).into(messages)
    ```

    Args:
        websocket: A WebSocket of FastAPI or Starlette that was accepted, a connection of
            `websockets`, or another object with `send` and `async for`. It is not closed.
        decode: The format of events: "json", "msgpack", "text", "bytes", `connect.csv(FIELDS)`, or
            a function of bytes.
        encode: The format of results, likewise.
        binary: Whether results are binary messages. None: unless they are "json" or "text".

    Raises:
        TypeError: When it is none of these.
        ValueError: When it was not accepted yet, or there is no such format.

    """
    if not hasattr(websocket, "receive_text") and not (
        hasattr(websocket, "__aiter__") and hasattr(websocket, "send")
    ):
        raise TypeError(
            f"a {type(websocket).__name__} is no open WebSocket: it has neither `receive_text` nor "
            "`send` with `async for`. Use `connect.websocket(url)` for an address"
        )
    if getattr(getattr(websocket, "application_state", None), "name", None) == "CONNECTING":
        raise ValueError("this WebSocket is not open: call `await websocket.accept()` first")
    return Messages(websocket, decode, encode, binary)


class Messages:
    """A source and a sink; see `messages`.

    Attributes:
        code: The code with which the other side has closed the connection; None while it is open,
            or when the server has not told.

    """

    name = "websocket messages"

    def __init__(self, websocket: Any, decode: Decode, encode: Encode, binary: bool | None) -> None:
        self.code: int | None = None
        self._websocket = websocket
        # Starlette has messages of ASGI; others give text and bytes.
        self._asgi = hasattr(websocket, "receive_text")
        self._decode = decoder(decode)
        self._frame = framed(encode, binary)
        self._interrupts = Interrupts()
        self._positions = itertools.count()
        self._ended = False

    def __repr__(self) -> str:
        """Name the client."""
        return f"messages({self._client()!r})"

    # The source.

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Give each message as it comes, until the connection ends."""
        receive = self._receive_asgi if self._asgi else aiter(self._websocket).__anext__
        while True:
            try:
                message = await self._interrupts.wait(_call(receive))
            except Interrupted:
                return
            except _End:
                self._ended = True
                if self.code is None:
                    self.code = getattr(self._websocket, "close_code", None)
                return
            except Exception as error:
                if not isinstance(error, _closings()):
                    raise
                self._end(error)
                return
            data = message.encode() if isinstance(message, str) else bytes(message)
            origin = (None, None, _PARTITION, next(self._positions))
            yield [decoded(self._decode, data, *origin)]

    async def _receive_asgi(self) -> str | bytes:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            self.code = message.get("code")
            raise StopAsyncIteration
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    def _end(self, error: Exception) -> None:
        self._ended = True
        # `websockets` keeps the close frame that came, Starlette its code alone.
        origin = error.rcvd if hasattr(error, "rcvd") else error
        self.code = getattr(origin, "code", None)

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Keep nothing: WebSocket has no acknowledgements."""

    def stop(self) -> None:
        """Read no more."""
        self._interrupts.stop()

    # The sink.

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Send results, each as a message; waits while the client does not read them.

        Raises:
            Disconnected: When the client has gone.

        """
        frames = [self._frame(addressed(key, result).value) for key, result in results]
        for sent, frame in enumerate(frames):
            if self._ended:
                raise self._gone(len(frames) - sent)
            try:
                await self._send(frame)
            except Exception as error:
                if not isinstance(error, (*_closings(), RuntimeError)):
                    raise
                self._end(error)
                raise self._gone(len(frames) - sent) from error

    async def _send(self, frame: str | bytes) -> None:
        if not self._asgi:
            await self._websocket.send(frame)
        elif isinstance(frame, str):
            await self._websocket.send_text(frame)
        else:
            await self._websocket.send_bytes(frame)

    def _gone(self, left: int) -> Disconnected:
        code = "" if self.code is None else f" with code {self.code}"
        return Disconnected(
            f"the client {self._client()} has closed its WebSocket{code}: {left} results were not "
            "sent"
        )

    def _client(self) -> str:
        address = getattr(self._websocket, "client" if self._asgi else "remote_address", None)
        return ":".join(map(str, address[:2])) if address else "?"

    async def flush(self) -> None:
        """Do nothing: results were given to the network, and no answer comes."""

    async def close(self) -> None:
        """Read no more. The WebSocket stays open: it is the server's."""
        self.stop()


class _End(Exception):
    """No message comes any more."""


async def _call(receive: Any) -> Any:
    try:
        return await receive()
    except StopAsyncIteration:
        # It would be a `RuntimeError` out of a task.
        raise _End from None


def _closings() -> tuple[type[Exception], ...]:
    """Give the errors by which the libraries that are in use tell that the other side has gone."""
    names = (
        ("starlette.websockets", "WebSocketDisconnect"),
        ("websockets.exceptions", "ConnectionClosed"),
    )
    modules = [(sys.modules.get(module), name) for module, name in names]
    return (OSError, *(getattr(module, name) for module, name in modules if module is not None))
